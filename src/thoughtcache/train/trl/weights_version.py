"""Tells whether the weights are still those that sampled. A step number cannot: every `train()` counts from zero.

What is seen: optimiser steps, the start of another `train()`, and everything that writes to a trainable parameter or
puts another in its place (a loaded checkpoint, another active adapter, a callback). Not seen: a write through `.data`
between two optimiser steps of one `train()`; PyTorch does not count it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerState


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsVersion:
    """A state of the weights of one trainer; two are equal if nothing has changed them in between.

    Attributes:
        run: calls of `train()` so far.
        optimizer_steps: optimiser steps so far, over all of them.
        parameters: (address, writes) of every trainable parameter, in the order of the model.
    """

    run: int
    optimizer_steps: int
    parameters: tuple[tuple[int, int], ...]


class WeightsCounter(TrainerCallback):
    """Counts what changes the weights of a trainer, from its construction on.

    Attributes:
        runs: calls of `train()`.
        fresh_starts: those that did not resume.
        optimizer_steps: optimiser steps of all these calls.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.fresh_starts = 0
        self.optimizer_steps = 0

    def on_train_begin(self, args: Any, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        """Count a run, since anything may have happened to the weights before it; a resumed run goes on at its step."""
        self.runs += 1
        self.fresh_starts += state.global_step == 0

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Count an optimiser step."""
        self.optimizer_steps += 1

    def version(self, model: nn.Module) -> WeightsVersion:
        """The weights as they are now.

        Args:
            model: the trained model.
        """
        return WeightsVersion(
            run=self.runs,
            optimizer_steps=self.optimizer_steps,
            parameters=tuple((p.data_ptr(), p._version) for p in model.parameters() if p.requires_grad),
        )
