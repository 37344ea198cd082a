"""How far a bounded adapter is from the base with its full cache, on texts that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.replay import run_replay
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import find_tuner, open_policy
from thoughtcache.records import Rollout
from thoughtcache.sampler.given import each_with_own_evictions
from thoughtcache.train.distill import teacher_hidden, under_window
from thoughtcache.train.divergence import both_losses


class TextLosses(NamedTuple):
    """Numbers of every thought of a text, in nats.

    Attributes:
        kl: divergence from the full-cache base.
        own: loss of the bounded policy.
        full: loss of the full-cache base.
    """

    kl: Float[Tensor, " _"]
    own: Float[Tensor, " _"]
    full: Float[Tensor, " _"]


class HeldOut:
    """The KL divergence from the full-cache base, token by token, each text a batch of its own.

    Args:
        model: the adapted model, with the window under which texts are read.
        samples: the texts.
    """

    def __init__(self, model: PeftModel, samples: Sequence[Rollout]) -> None:
        self.rows = under_window(samples, find_tuner(model).thought_config)
        device = open_policy(model).device
        with evaluating(model):
            self.teacher = [teacher_hidden(model, batch_rollouts([row], device)).cpu() for row in self.rows]

    @torch.no_grad()
    def __call__(self, model: nn.Module, progress: Callable[[int], None] | None = None) -> list[Float[Tensor, " _"]]:
        """KL (nats) of every thought of every text.

        Args:
            model: the adapted model, not wrapped.
            progress: called with the number of texts that were looked at.
        """
        # What leaves under a policy that chooses depends on the weights of the moment.
        return self.under(model, each_with_own_evictions(model, self.rows), progress)

    @torch.no_grad()
    def under(
        self, model: nn.Module, rows: Iterable[Rollout], progress: Callable[[int], None] | None = None
    ) -> list[Float[Tensor, " _"]]:
        """The same under evictions that are known.

        Args:
            model: the adapted model, not wrapped.
            rows: the texts, in their order, with their evictions; taken one by one in evaluation mode.
            progress: called with the number of texts that were looked at.
        """
        return [losses.kl for losses in self.losses(model, rows, progress)]

    @torch.no_grad()
    def losses(
        self, model: nn.Module, rows: Iterable[Rollout], progress: Callable[[int], None] | None = None
    ) -> list[TextLosses]:
        """The divergence with the losses of both sides.

        Args:
            model: see `under`, as for the others.
            rows: the texts with their evictions.
            progress: called with the number of texts that were looked at.
        """
        policy = open_policy(model)
        found = []
        with evaluating(model):
            for row, teacher in zip(rows, self.teacher, strict=True):
                batch = batch_rollouts([row], policy.device)
                score = both_losses(policy, batch, teacher.to(policy.device))
                values = run_replay(model, batch, score, ReplayOptions(anchored=False))
                found.append(TextLosses(*(value[0].cpu() for value in values)))
                if progress is not None:
                    progress(1)
        return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutKL:
    """The divergence from the full-cache base on several texts, in nats per token.

    Attributes:
        before: mean over the tokens before the first eviction.
        after: mean over the tokens after it, text by text and then over texts.
        low: lower end of the 95 % interval of `after`.
        high: upper end of it.
        by_text: `after` of every text.
    """

    before: float
    after: float
    low: float
    high: float
    by_text: list[float]


def summary(values: Sequence[Float[Tensor, " _"]], window: int) -> HeldOutKL:
    """What `HeldOut` found, before and after the first eviction under a window of so many thoughts.

    Args:
        values: KL of every thought, one tensor per text; texts that are not evicted are left out of `after`.
        window: resident thoughts.

    Raises:
        ValueError: if fewer than two texts are evicted.
    """
    # The first token that is predicted after the first eviction.
    by_text = [kl[window + 1 :].double().mean().item() for kl in values if len(kl) > window + 1]
    if len(by_text) < 2:
        raise ValueError(
            f"{len(by_text)} of {len(values)} held-out texts are longer than window={window}; two are the least: give "
            "longer or more texts, or a smaller window"
        )
    early = torch.cat([kl[: window + 1] for kl in values]).double()
    low, high = mean_interval(by_text)
    after = sum(by_text) / len(by_text)
    return HeldOutKL(before=early.mean().item(), after=after, low=low, high=high, by_text=by_text)
