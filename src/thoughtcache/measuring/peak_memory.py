"""The measured peak of memory of a block of code.

    with PeakMemory() as memory:
        rollout(...)
    memory.peak_mib

Not covered: what a model needs before it runs (weights, optimiser), GPUs other than CUDA.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from pathlib import Path
from types import TracebackType

import torch

MIB = 2**20
_STATM = Path("/proc/self/statm")


class PeakMemory:
    """Context manager: peak memory of its block over what was in use on entry.

    On CUDA: bytes that PyTorch's allocator handed out (`max_memory_allocated` after a reset), exact.

    On the CPU: resident set of the process, read from /proc/self/statm by a thread every `interval_seconds` (and on
    entry and exit). Two caveats. A peak shorter than the interval, or one inside a kernel that holds the interpreter
    lock, can be missed. Memory that was freed but kept by the C allocator would hide a peak, so entry collects
    garbage and, under glibc, gives free memory back to the system first; other threads of the process are counted.

    Args:
        device: what to measure; the CPU by default.
        interval_seconds: time between two samples on the CPU.

    Attributes:
        baseline_mib: MiB in use on entry.
        peak_mib: MiB over the baseline at the highest point of the block, at least 0; valid after it.

    Raises:
        ValueError: if the device has no measurement, the interval is not positive, or (on entry) there is no /proc.
    """

    def __init__(self, device: torch.device | str = "cpu", *, interval_seconds: float = 0.002) -> None:
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"memory of device {str(self.device)!r} cannot be measured; use 'cpu' or 'cuda'")
        if interval_seconds <= 0:
            raise ValueError(f"interval_seconds must be positive, got {interval_seconds}; 0.002 is usual")
        self.interval_seconds = interval_seconds
        self.baseline_mib = 0.0
        self.peak_mib = 0.0
        self._highest_bytes = 0
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.baseline_mib = torch.cuda.memory_allocated(self.device) / MIB
            return self
        _return_free_memory()
        self._highest_bytes = resident_bytes()
        self.baseline_mib = self._highest_bytes / MIB
        self._stop.clear()
        self._sampler = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler is None:
            torch.cuda.synchronize(self.device)
            self.peak_mib = torch.cuda.max_memory_allocated(self.device) / MIB - self.baseline_mib
            return
        last = resident_bytes()
        self._stop.set()
        self._sampler.join()
        self._sampler = None
        self.peak_mib = max(self._highest_bytes, last) / MIB - self.baseline_mib

    def _sample(self) -> None:
        while not self._stop.wait(self.interval_seconds):
            self._highest_bytes = max(self._highest_bytes, resident_bytes())


def resident_bytes() -> int:
    """Resident set of this process in bytes.

    Raises:
        ValueError: where /proc/self/statm does not exist.
    """
    if not can_measure_resident_bytes():
        raise ValueError(f"{_STATM} does not exist, so CPU memory cannot be measured here; run on Linux or on CUDA")
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def can_measure_resident_bytes() -> bool:
    """Whether `resident_bytes` works here."""
    return _STATM.exists()


def mib_in_use() -> float | None:
    """MiB that are in use now: PyTorch's allocator of the current CUDA device, or this process; None if unknown."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.memory_allocated() / MIB
    return resident_bytes() / MIB if can_measure_resident_bytes() else None


def peak_memory_of(device: torch.device) -> PeakMemory | None:
    """A measurement of the device; None where the system does not tell."""
    return PeakMemory(device) if device.type == "cuda" or can_measure_resident_bytes() else None


def _return_free_memory() -> None:
    """Give free heap memory back to the system, where the C library can."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # not glibc
        return
    trim(0)
