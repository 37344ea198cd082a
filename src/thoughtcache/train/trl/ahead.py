"""Sampling for a trainer through a backend, and ahead of it: the next batch is sampled while the current one is learnt.

At most one batch is ahead, so rollouts are at most one batch stale. The trainer corrects for it: the log-probabilities
that sampled are the old policy of TRL's importance weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from torch import nn

from thoughtcache.sampler.options import RolloutOptions
from thoughtcache.scale.backend import PendingBatch, RolloutBackend, SampledBatch
from thoughtcache.train.trl.weights_version import WeightsVersion


class Lookahead(Iterator[Any]):
    """An iterator whose next items can be seen before they are taken.

    Args:
        source: what is iterated.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source
        self._seen: deque[Any] = deque()

    def __next__(self) -> Any:
        return self._seen.popleft() if self._seen else next(self.source)

    def peek(self, index: int) -> Any | None:
        """The item that `index` calls of `next` would skip; None behind the end."""
        while len(self._seen) <= index:
            try:
                self._seen.append(next(self.source))
            except StopIteration:
                return None
        return self._seen[index]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Started:
    """A batch that a backend samples, and the weights that were sent to it."""

    prompt_ids: list[list[int]]
    weights: WeightsVersion
    batch: PendingBatch


class AheadSampler:
    """Samples through a backend and keeps the one batch that is ahead.

    Args:
        backend: who samples.
    """

    def __init__(self, backend: RolloutBackend) -> None:
        self.backend = backend
        self._next: _Started | None = None
        self._lookahead = Lookahead(iter(()))
        self._num_taken = 0

    def watch(self, batches: Iterator[Any], num_taken: int) -> Iterator[Any]:
        """Look at the batches of an epoch before the trainer takes them.

        Args:
            batches: where the trainer takes them from.
            num_taken: how many micro-batches it will have taken, over the whole run, after this time.

        Returns:
            What to take them from instead; `batches` itself if the backend does not sample ahead.
        """
        self._num_taken = num_taken
        if not self.backend.ahead:
            return batches
        if self._lookahead.source is not batches:
            self._lookahead = Lookahead(batches)
        return self._lookahead

    def batch_at(self, micro_step: int) -> Any | None:
        """The batch of a later micro-step; None behind the end of the epoch, or if it was taken or never watched."""
        index = micro_step - self._num_taken
        return self._lookahead.peek(index) if index >= 0 else None

    def sample(
        self,
        model: nn.Module,
        prompt_ids: Sequence[Sequence[int]],
        weights: WeightsVersion,
        **options: Unpack[RolloutOptions],
    ) -> tuple[SampledBatch, WeightsVersion]:
        """The rollouts of these prompts: those that are ahead if they are the same prompts, else fresh ones.

        Returns:
            The batch, and the weights that sampled it.
        """
        started, self._next = self._next, None
        if started is None or started.prompt_ids != list(prompt_ids):
            started = self._start(model, prompt_ids, weights, **options)
        return started.batch.result(), started.weights

    def sample_now(
        self, model: nn.Module, prompt_ids: Sequence[Sequence[int]], **options: Unpack[RolloutOptions]
    ) -> SampledBatch:
        """Fresh rollouts, for an evaluation; what is ahead stays ahead."""
        return self.backend.start(model, prompt_ids, **options).result()

    def start_next(
        self,
        model: nn.Module,
        prompt_ids: Sequence[Sequence[int]],
        weights: WeightsVersion,
        **options: Unpack[RolloutOptions],
    ) -> None:
        """Begin with the batch that the next `sample` will ask for."""
        self._next = self._start(model, prompt_ids, weights, **options)

    def _start(
        self,
        model: nn.Module,
        prompt_ids: Sequence[Sequence[int]],
        weights: WeightsVersion,
        **options: Unpack[RolloutOptions],
    ) -> _Started:
        rows = [list(ids) for ids in prompt_ids]
        return _Started(prompt_ids=rows, weights=weights, batch=self.backend.start(model, rows, **options))


def backend_metrics(batch: SampledBatch, staleness: int) -> dict[str, float]:
    """Metrics of what a backend did for one training batch.

    Args:
        batch: the batch with its rollouts.
        staleness: optimiser steps between the weights that sampled and those that begin to learn.
    """
    return {
        "rollout/staleness": float(staleness),
        "rollout/adapter_version": float(batch.adapter_version),
        "rollout/redispatched": float(batch.num_redispatched),
    }
