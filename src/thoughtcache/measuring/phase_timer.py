"""Wall-clock seconds and peak memory of the phases of a training step, without a host synchronisation on a GPU.

On CUDA a phase is a pair of events in the stream, read when the step is over; elsewhere it is the host clock. Phases
nest (`INSIDE`), and the seconds of a phase are with those that ran inside it; `own_seconds` takes them out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from transformers import TrainerCallback

from thoughtcache.measuring.phase_memory import PhaseMemory

P = ParamSpec("P")
T = TypeVar("T")
INSIDE = {"rollout": ("prefill", "draw", "decode", "hear", "evict"), "evict": ("move",), "move": ("absorb",)}
"""The phases that run inside another one."""
OUTERMOST = ("rollout", "rewards", "reference", "replay", "backward", "optimizer")
PHASES = (*OUTERMOST, *(name for inner in INSIDE.values() for name in inner))
BRIEF = frozenset({"draw", "decode", "hear", "move", "absorb"})
"""Phases of every round or layer, which are too short for a look at memory."""
FOLDED_SPANS = 4096
"""Spans on a GPU after which those that are over are added up: an evaluation has millions."""
Mark = Any
"""A moment: host seconds, or a CUDA event."""


class PhaseTimer:
    """Adds up the seconds of each phase until they are flushed.

    Args:
        device: where the phases run.
        memory: told of every phase that is not brief.
    """

    def __init__(self, device: torch.device, memory: PhaseMemory | None = None) -> None:
        self._on_cuda = device.type == "cuda"
        self._memory = memory
        self._open: list[tuple[str, Mark]] = []
        self._seconds: dict[str, float] = {}
        self._spans: list[tuple[str, Mark, Mark]] = []

    def begin(self, name: str) -> None:
        """A phase begins."""
        self._open.append((name, self._mark()))
        if self._memory is not None and name not in BRIEF:
            self._memory.enter(name)

    def end(self, *, count: bool = True) -> None:
        """The innermost phase ends; `count=False` leaves its time out."""
        name, start = self._open.pop()
        if self._memory is not None and name not in BRIEF:
            self._memory.leave()
        if not count:
            return
        if not self._on_cuda:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._mark() - start
            return
        self._spans.append((name, start, self._mark()))
        if len(self._spans) % FOLDED_SPANS == 0:
            self._fold()

    def _fold(self) -> None:
        """Add up the spans that the device has passed; the others wait."""
        waiting = []
        for name, start, stop in self._spans:
            if stop.query():
                self._seconds[name] = self._seconds.get(name, 0.0) + start.elapsed_time(stop) / 1000.0
            else:
                waiting.append((name, start, stop))
        self._spans = waiting

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

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function, every call of which is a phase."""

        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.phase(name):
                return function(*args, **kwargs)

        return run

    def peaks(self) -> dict[str, float]:
        """MiB at the highest point of every phase since the last call; empty without memory."""
        return {} if self._memory is None else self._memory.flush()

    def flush(self) -> dict[str, float]:
        """Seconds of every phase since the last flush; 0 for a phase that did not run."""
        if self._spans:
            torch.cuda.synchronize()
            self._fold()
        seconds, self._seconds = {**dict.fromkeys(PHASES, 0.0), **self._seconds}, {}
        return seconds


def own_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of every phase without those of the phases inside it; they add up to the seconds of the outermost ones.

    Args:
        seconds: as `PhaseTimer.flush` gives them, or sums of several.
    """
    inner = {name: sum(seconds[one] for one in INSIDE.get(name, ())) for name in PHASES}
    return {name: seconds[name] - inner[name] for name in PHASES}


def sampling_seconds(seconds: Mapping[str, float], elapsed: float) -> dict[str, float]:
    """Own seconds of what only samples and checks, where every answer is checked as soon as it is over.

    Args:
        seconds: as `PhaseTimer.flush` gives them; the checks ("rewards") ran inside "rollout".
        elapsed: seconds on the wall, to which all phases and "other" add up.
    """
    own = own_seconds(seconds)
    own["rollout"] -= seconds["rewards"]
    return {**own, "other": elapsed - seconds["rollout"]}


class PhaseCallback(TrainerCallback):
    """Times the optimiser and reports all phases once per optimiser step.

    Args:
        timer: the timer that the trainer uses.
        report: called at the end of each optimiser step with the seconds of its phases and the peaks in MiB. "step" is
            all time since the end of the last step, logs and checkpoints between the two included.
    """

    def __init__(self, timer: PhaseTimer, report: Callable[[dict[str, float], dict[str, float]], None]) -> None:
        self._timer = timer
        self._report = report
        self._began = time.perf_counter()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The first step begins."""
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clipping is over, the optimiser begins."""
        self._timer.begin("optimizer")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser is done."""
        self._timer.end()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Report before the trainer logs."""
        seconds, now = self._timer.flush(), time.perf_counter()
        self._report({**seconds, "step": now - self._began}, self._timer.peaks())
        self._began = now
