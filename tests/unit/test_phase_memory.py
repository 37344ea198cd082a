"""Peak memory by phase: measured on tensors of known size."""

from __future__ import annotations

import gc
import mmap
import threading
import time

import pytest
import torch

from thoughtcache.measuring.phase_memory import PhaseMemory
from thoughtcache.measuring.phase_timer import PhaseTimer

SIZE_MIB = 96


def _use(mib: int) -> None:
    """Memory of the system's own: an allocator could serve it from what it keeps, and keep it afterwards."""
    with mmap.mmap(-1, mib * 2**20) as block:
        tensor = torch.frombuffer(block, dtype=torch.uint8).fill_(1)
        time.sleep(0.05)
        del tensor  # else the block is in use


def _run() -> tuple[PhaseMemory, dict[str, float]]:
    """Four phases, of which one uses memory, and what was the peak of each."""
    memory = PhaseMemory(torch.device("cpu"), keep_timeline=True)
    timer = PhaseTimer(torch.device("cpu"), memory)
    with timer.phase("rewards"):
        time.sleep(0.03)
    with timer.phase("rollout"), timer.phase("evict"):
        _use(SIZE_MIB)
    with timer.phase("optimizer"):
        time.sleep(0.03)
    peaks = timer.peaks()
    assert timer.peaks() == {}
    return memory, peaks


def test_the_phase_that_needs_memory_is_named() -> None:
    for _ in range(3):  # a busy system may take back, in the middle, what other tests left
        gc.collect()
        memory, peaks = _run()
        if abs(peaks["evict"] - peaks["rewards"] - SIZE_MIB) < 0.2 * SIZE_MIB:
            break
    assert set(peaks) == {"rewards", "rollout", "evict", "optimizer"}
    for outer in ("rollout", "evict"):
        assert peaks[outer] - peaks["rewards"] == pytest.approx(SIZE_MIB, rel=0.2)
    assert peaks["optimizer"] < peaks["rewards"] + SIZE_MIB / 2
    seconds, used, names = zip(*memory.timeline, strict=True)
    assert list(seconds) == sorted(seconds)
    assert set(names) >= {"rewards", "evict", "optimizer"}
    highest = memory.timeline[used.index(max(used))]
    assert highest[2] == "evict"


def test_the_thread_ends_with_its_owner() -> None:
    before = set(threading.enumerate())
    memory = PhaseMemory(torch.device("cpu"), interval_seconds=0.001)
    (thread,) = set(threading.enumerate()) - before
    del memory
    gc.collect()
    thread.join(timeout=10.0)
    assert not thread.is_alive()


def test_a_phase_that_raises_is_closed() -> None:
    timer = PhaseTimer(torch.device("cpu"), PhaseMemory(torch.device("cpu")))
    with pytest.raises(ValueError, match="no"), timer.phase("rollout"):
        raise ValueError("no")
    assert timer.flush()["rollout"] == 0.0
    with timer.phase("rewards"):
        pass
    assert timer.flush()["rewards"] > 0.0
