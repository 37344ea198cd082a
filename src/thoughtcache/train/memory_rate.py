"""A learning rate of its own for what writes and reads the states.

These parameters are kept at unit scale, and start at random or at zero; the factors of LoRA correct a trained model. A
rate that is right for one may be far too small, or too large, for the other (docs/lab-log.md, "a narrow band").
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from thoughtcache.adapter.state_parameters import is_of_states


def check_memory_rate(rate: float | None) -> None:
    """Refuse a rate that is no positive number.

    Raises:
        ValueError: for such a rate.
    """
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"memory_learning_rate must be positive, got {rate}")


def set_memory_rate(optimizer: Optimizer, model: nn.Module, rate: float | None) -> None:
    """Move what writes and reads the states into groups of parameters of their own, with another learning rate.

    Args:
        optimizer: a new optimizer, before a scheduler is made for it.
        model: the model whose parameters it has, wrapped or not.
        rate: peak learning rate; the scheduler multiplies it as it does the other one. None changes nothing.

    Raises:
        ValueError: if there is no such parameter among those that are trained.
    """
    if rate is None:
        return
    of_states = {id(parameter) for name, parameter in model.named_parameters() if is_of_states(name)}
    groups = []
    for group in optimizer.param_groups:
        for is_memory, other in ((False, {}), (True, {"lr": rate})):
            chosen = [parameter for parameter in group["params"] if (id(parameter) in of_states) == is_memory]
            if chosen:
                groups.append({**group, "params": chosen, **other})
    if not any(id(parameter) in of_states for group in groups for parameter in group["params"]):
        raise ValueError(
            f"memory_learning_rate={rate} changes nothing: no parameter behind states is trained (plain LoRA, or a "
            "frozen memory); leave it out"
        )
    optimizer.param_groups[:] = groups


class MemoryRate:
    """Part of a `transformers.Trainer` whose optimizer has two learning rates."""

    model: Any
    optimizer: Any
    memory_learning_rate: float | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The trainer's own optimizer, with the groups of `set_memory_rate` where it is new."""
        is_new = self.optimizer is None
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if is_new:
            set_memory_rate(optimizer, self.model, self.memory_learning_rate)
        return optimizer
