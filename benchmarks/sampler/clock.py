"""Times and memory of the rounds of a rollout, taken behind the forward pass of the backbone.

A round reaches from one forward pass of one column to the next, and so holds drawing, harvest and eviction. Forward
passes of several columns are prefills and no rounds. On a GPU nothing is waited for: over blocks of rounds that are
longer than the queue, launching runs at the pace of the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn

from benchmarks.sampler.timing import synchronise
from thoughtcache.measuring.peak_memory import MIB, can_measure_resident_bytes, resident_bytes


class RoundClock:
    """Context manager that watches a backbone.

    Args:
        backbone: decoder stack.
        device: where it is.
        memory_every: rounds between two looks at memory; 0 for none.
        interrupt: called after a round, by number; its time is nobody's.

    Attributes:
        seconds: wall clock of every round.
        cpu_seconds: of this process, which does not see what else the machine does.
        memory: (round, MiB in use).
    """

    def __init__(
        self,
        backbone: nn.Module,
        device: str | torch.device,
        *,
        memory_every: int = 0,
        interrupt: Mapping[int, Callable[[], None]] | None = None,
    ) -> None:
        self.backbone, self.device = backbone, torch.device(device)
        self.memory_every, self.interrupt = memory_every, interrupt or {}
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.memory: list[tuple[int, float]] = []
        self._last: tuple[float, float] | None = None
        self._handle: Any = None

    def __enter__(self) -> RoundClock:
        self._handle = self.backbone.register_forward_hook(self._after, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len(self.seconds)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        now = time.perf_counter(), time.process_time()
        inputs = kwargs.get("input_ids", args[0] if args else None)
        is_round = inputs is not None and inputs.shape[1] == 1
        if is_round and self._last is not None:
            self.seconds.append(now[0] - self._last[0])
            self.cpu_seconds.append(now[1] - self._last[1])
            self._last = now
            self._look()
            return
        self._last = now

    def _look(self) -> None:
        if self.memory_every and self.rounds % self.memory_every == 0:
            self.memory.append((self.rounds, used_mib(self.device)))
        if self.rounds in self.interrupt:
            synchronise(self.device)
            self.interrupt[self.rounds]()
            synchronise(self.device)
            self._last = time.perf_counter(), time.process_time()


def used_mib(device: torch.device) -> float:
    """Resident set of this process, or what PyTorch's allocator handed out on a GPU; NaN where neither can be read."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    return resident_bytes() / MIB if can_measure_resident_bytes() else float("nan")
