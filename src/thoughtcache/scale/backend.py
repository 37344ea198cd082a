"""The interface of whatever samples for a trainer: it starts a batch, and later hands over its rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Unpack, runtime_checkable

from torch import nn

from thoughtcache.records import Rollout
from thoughtcache.sampler.options import RolloutOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledBatch:
    """The rollouts of one call.

    Attributes:
        rollouts: one per prompt, in order.
        adapter_version: which weights sampled all of them; the first ones are version 1, each change counts one up.
        num_redispatched: shards that were sampled again because their worker was lost.
    """

    rollouts: list[Rollout]
    adapter_version: int
    num_redispatched: int = 0


@runtime_checkable
class PendingBatch(Protocol):
    """A batch that is being sampled."""

    def result(self) -> SampledBatch:
        """Wait for the rollouts, no longer than the backend's time limit."""


@runtime_checkable
class RolloutBackend(Protocol):
    """Samples elsewhere; `ThoughtGRPOTrainer(rollout_backend=...)` takes one.

    Attributes:
        ahead: whether a trainer may start the next batch before it learns from the current one.
    """

    ahead: bool

    def start(
        self, model: nn.Module, prompt_ids: Sequence[Sequence[int]], **options: Unpack[RolloutOptions]
    ) -> PendingBatch:
        """Begin to sample with the adapter that `model` has now; later changes of it do not matter.

        Args:
            model: the learner's PEFT model, not wrapped.
            prompt_ids: token ids, one list per prompt.
            **options: options as `rollout` takes them.
        """
