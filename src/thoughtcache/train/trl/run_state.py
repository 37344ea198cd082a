"""The state that the trainer keeps between the calls that TRL makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from thoughtcache.measuring.phase_timer import PhaseTimer
from thoughtcache.train.trl.ahead import AheadSampler
from thoughtcache.train.trl.generations import Generation, Scoring
from thoughtcache.train.trl.rollout_log import RolloutLog
from thoughtcache.train.trl.weights_version import WeightsCounter

SEED_BYTES = 5
"""`rollout` multiplies its seed by about a million, and a generator takes 64 bits."""


@dataclass(kw_only=True, slots=True)
class RunState:
    """One run of one process.

    Attributes:
        sampler: samples through a backend, ahead where it can; None where this process samples.
        timer: timer of the phases of a step.
        weights: counts their versions.
        log: keeps what was sampled in training; None keeps nothing.
        generations: the last rollouts by mode, "train" or "eval".
        scoring: what is scored now; None outside of a generation and of a loss.
        last_micro_step: the micro step after the last one of the run.
        in_backward: whether a backward pass is being timed.
        seed_calls: (fresh starts, optimiser step) of the last call of each mode, and its number within the step.
    """

    sampler: AheadSampler | None
    timer: PhaseTimer
    weights: WeightsCounter
    log: RolloutLog | None = None
    generations: dict[str, Generation] = field(default_factory=dict)
    scoring: Scoring | None = None
    last_micro_step: int = 0
    in_backward: bool = False
    seed_calls: dict[str, tuple[tuple[int, int], int]] = field(default_factory=dict)

    def next_seed(self, run_seed: int, mode: str, step: int, process_index: int) -> int:
        """A seed of its own for every call: run, mode, optimiser step, call within the step, process.

        Calls are counted within an optimiser step, so a resumed run draws the numbers of an uninterrupted one.
        """
        starts = max(1, self.weights.fresh_starts)
        last, count = self.seed_calls.get(mode, ((0, 0), 0))
        count = count + 1 if last == (starts, step) else 0
        self.seed_calls[mode] = ((starts, step), count)
        parts: tuple[Any, ...] = (run_seed, mode, step, count, process_index)
        if starts > 1:  # another `train()` from step 0
            parts += (starts,)
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=SEED_BYTES).digest()
        return int.from_bytes(digest, "big")

    def begin_backward(self) -> None:
        """Mark the beginning of the backward pass, which lasts until `end_backward`."""
        self.in_backward = True
        self.timer.begin("backward")

    def end_backward(self) -> None:
        """The backward pass is over, if there was one."""
        if self.in_backward:
            self.timer.end()
            self.in_backward = False

    @contextmanager
    def scored(self, scoring: Scoring) -> Iterator[None]:
        """Score these rollouts in a block."""
        self.scoring = scoring
        try:
            yield
        finally:
            self.scoring = None
