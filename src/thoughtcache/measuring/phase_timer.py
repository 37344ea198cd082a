"""Wall-clock seconds and peak memory of the phases of a training step, without a host synchronisation on a GPU.

On CUDA a phase is a pair of events in the stream, read when the step is over; elsewhere it is the host clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from thoughtcache.measuring.phase_memory import PhaseMemory

PHASES = ("rollout", "evict", "replay", "rewards", "backward", "optimizer")
Mark = Any
"""A moment: host seconds, or a CUDA event."""


class PhaseTimer:
    """Adds up the seconds of each phase until they are flushed. Phases may nest (evict runs inside rollout).

    Args:
        device: where the phases run.
        memory: told of every phase as well.
    """

    def __init__(self, device: torch.device, memory: PhaseMemory | None = None) -> None:
        self._on_cuda = device.type == "cuda"
        self._memory = memory
        self._open: list[tuple[str, Mark]] = []
        self._spans: list[tuple[str, Mark, Mark]] = []

    def begin(self, name: str) -> None:
        """A phase begins."""
        self._open.append((name, self._mark()))
        if self._memory is not None:
            self._memory.enter(name)

    def end(self, *, count: bool = True) -> None:
        """The innermost phase ends; `count=False` leaves its time out."""
        name, start = self._open.pop()
        if self._memory is not None:
            self._memory.leave()
        if count:
            self._spans.append((name, start, self._mark()))

    def _mark(self) -> Mark:
        """This moment."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block; a block that raises is not counted."""
        self.begin(name)
        done = False
        try:
            yield
            done = True
        finally:
            self.end(count=done)

    def peaks(self) -> dict[str, float]:
        """MiB at the highest point of every phase since the last call; empty without memory."""
        return {} if self._memory is None else self._memory.flush()

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
        report: called with the seconds and the peaks of each phase at the end of each optimiser step.
    """

    def __init__(self, timer: PhaseTimer, report: Callable[[dict[str, float], dict[str, float]], None]) -> None:
        self._timer = timer
        self._report = report

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clipping is over, the optimiser begins."""
        self._timer.begin("optimizer")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser is done."""
        self._timer.end()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Report before the trainer logs."""
        self._report(self._timer.flush(), self._timer.peaks())
