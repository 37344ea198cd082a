"""Wall-clock seconds of the phases of a training step, without a host synchronisation on a GPU.

On CUDA a phase is a pair of events in the stream, read when the step is over; elsewhere it is the host clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from transformers import TrainerCallback

PHASES = ("rollout", "absorb", "replay", "rewards", "optimizer")
P = ParamSpec("P")
R = TypeVar("R")
Mark = Any
"""A moment: host seconds, or a CUDA event."""


class PhaseTimer:
    """Adds up the seconds of each phase until they are flushed. Phases may nest (absorb runs inside rollout).

    Args:
        device: where the phases run.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spans: list[tuple[str, Mark, Mark]] = []

    def mark(self) -> Mark:
        """This moment."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def add(self, name: str, start: Mark) -> None:
        """Count the time from `start` to now as phase `name`."""
        self._spans.append((name, start, self.mark()))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block; a block that raises is not counted."""
        start = self.mark()
        yield
        self.add(name, start)

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, each call counted as phase `name`."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def flush(self) -> dict[str, float]:
        """Seconds of every phase since the last flush; 0 for a phase that did not run."""
        seconds = dict.fromkeys(PHASES, 0.0)
        if self._on_cuda and self._spans:
            torch.cuda.synchronize()
        for name, start, stop in self._spans:
            elapsed = start.elapsed_time(stop) / 1000.0 if self._on_cuda else stop - start
            seconds[name] = seconds.get(name, 0.0) + elapsed
        self._spans.clear()
        return seconds


class PhaseCallback(TrainerCallback):
    """Times the optimiser and reports all phases once per optimiser step.

    Args:
        timer: the timer that the trainer uses.
        report: called with the seconds of each phase at the end of each optimiser step.
    """

    def __init__(self, timer: PhaseTimer, report: Callable[[dict[str, float]], None]) -> None:
        self._timer = timer
        self._report = report
        self._start: Mark = None

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clipping is over, the optimiser begins."""
        self._start = self._timer.mark()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser is done."""
        self._timer.add("optimizer", self._start)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Report before the trainer logs."""
        self._report(self._timer.flush())
