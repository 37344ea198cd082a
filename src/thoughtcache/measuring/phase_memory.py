"""Peak memory of the phases of a training step, and on request the timeline that shows where it went.

On CUDA peaks are the allocator's own, reset at every change of phase. Elsewhere a thread samples the resident set;
there are no peaks where the system does not tell it (no /proc).
"""

from __future__ import annotations

import threading
import time
import weakref

import torch

from thoughtcache.measuring.peak_memory import MIB, can_measure_resident_bytes, resident_bytes

OUTSIDE = "other"
Timeline = list[tuple[float, float, str]]
"""(seconds since the start, MiB in use, phase)."""


class PhaseMemory:
    """Highest memory in use while each phase ran, weights included. Inner phases count for the outer ones too.

    Args:
        device: where the phases run.
        keep_timeline: keep every sample in `timeline`.
        interval_seconds: time between two samples of the thread.

    Attributes:
        timeline: samples so far; empty unless kept.
    """

    def __init__(self, device: torch.device, *, keep_timeline: bool = False, interval_seconds: float = 0.01) -> None:
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._can_measure = self._on_cuda or can_measure_resident_bytes()
        self._keep = keep_timeline
        self._open: list[str] = []
        self._peaks: dict[str, int] = {}
        self._lock = threading.Lock()
        self._started = time.perf_counter()
        self.timeline: Timeline = []
        if self._can_measure and (keep_timeline or not self._on_cuda):
            arguments = (weakref.ref(self), interval_seconds)
            threading.Thread(target=_watch, args=arguments, name="phase-memory", daemon=True).start()

    def enter(self, name: str) -> None:
        """A phase begins."""
        self._close_interval()
        self._open.append(name)
        self.sample()

    def leave(self) -> None:
        """The innermost phase ends."""
        self._close_interval()
        self._open.pop()

    def flush(self) -> dict[str, float]:
        """MiB at the highest point of every phase since the last flush."""
        self._close_interval()
        with self._lock:
            peaks, self._peaks = self._peaks, {}
        return {name: peak / MIB for name, peak in peaks.items() if name != OUTSIDE}

    def sample(self) -> None:
        """Look once."""
        if not self._can_measure:
            return
        used = torch.cuda.memory_allocated(self._device) if self._on_cuda else resident_bytes()
        self._count(used)
        if self._keep:
            self.timeline.append((time.perf_counter() - self._started, used / MIB, self._current()))

    def _close_interval(self) -> None:
        """Count what was highest since the last change of phase."""
        if not self._on_cuda:
            self.sample()
            return
        self._count(torch.cuda.max_memory_allocated(self._device))
        torch.cuda.reset_peak_memory_stats(self._device)

    def _count(self, used: int) -> None:
        with self._lock:
            for name in self._open or [OUTSIDE]:
                self._peaks[name] = max(self._peaks.get(name, 0), used)

    def _current(self) -> str:
        return self._open[-1] if self._open else OUTSIDE


def _watch(reference: weakref.ref[PhaseMemory], interval_seconds: float) -> None:
    """Sample until nobody holds the object any more."""
    while True:
        time.sleep(interval_seconds)
        memory = reference()
        if memory is None:
            return
        memory.sample()
        del memory
