"""Seconds on the wall and of the CPU: calls that take turns, and rounds in blocks of whole eviction cycles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from benchmarks.sampler.figures import Figure, over_repeats, ratios


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of repeated calls.

    Attributes:
        wall: on the wall.
        cpu: of the process.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, run: Callable[[], object], device: str | torch.device) -> None:
        """One more call."""
        synchronise(device)
        started = time.perf_counter(), time.process_time()
        run()
        synchronise(device)
        self.wall.append(time.perf_counter() - started[0])
        self.cpu.append(time.process_time() - started[1])

    def over(self, other: Seconds, name: str, **target: Any) -> Figure:
        """The ratio to what ran side by side."""
        return over_repeats(name, ratios(self.wall, other.wall), cpu=ratios(self.cpu, other.cpu), unit="x", **target)


def synchronise(device: str | torch.device) -> None:
    """Wait for a GPU; nothing on the CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def timed_calls(
    owner: Any, *names: str, device: str | torch.device, when: Callable[[], bool] = lambda: True
) -> Iterator[Seconds]:
    """Seconds of every call of these functions of a class or module in the block, between two waits for the device.

    Args:
        owner: the class or module.
        names: of its functions.
        device: of the model.
        when: asked before every call whether it counts.
    """
    seconds = Seconds()
    plain = {name: getattr(owner, name) for name in names}

    def timing(function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not when():
                return function(*args, **kwargs)
            found: list[Any] = []
            seconds.time(lambda: found.append(function(*args, **kwargs)), device)
            return found[0]

        return timed

    try:
        for name, function in plain.items():
            setattr(owner, name, timing(function))
        yield seconds
    finally:
        for name, function in plain.items():
            setattr(owner, name, function)


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: str | torch.device
) -> dict[str, Seconds]:
    """Seconds of every run, taking turns: whatever slows the machine down meets all of them alike."""
    seconds = {name: Seconds() for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].time(run, device)
    return seconds


def round_seconds(rounds: Sequence[float], *, around: int, cycle: int, cycles: int, first: int = 0) -> float:
    """Seconds of one round at a position: the median over whole eviction cycles around it.

    Every stretch of `cycle` rounds of a full window holds exactly one eviction, so its price is in each of them. The
    median leaves out the cycles in which the machine did something else.

    Args:
        rounds: seconds of every round; round `i` processes thought `i`.
        around: position.
        cycle: rounds between two evictions.
        cycles: how many to look at.
        first: first round that counts, because the window is full from there on.

    Raises:
        ValueError: if the band leaves the rounds that count.
    """
    start = around - cycle * cycles // 2
    stop = start + cycle * cycles
    if start < first or stop > len(rounds):
        raise ValueError(f"{cycles} cycles of {cycle} rounds around {around} leave the rounds {first} to {len(rounds)}")
    return median(sum(rounds[at : at + cycle]) for at in range(start, stop, cycle)) / cycle


def speed_curve(
    rounds: Sequence[float], *, batch: int, cycle: int, points: int = 16, first: int = 0
) -> tuple[list[float], list[float]]:
    """Positions and tokens per second along a rollout, each point a median over whole eviction cycles."""
    count = (len(rounds) - first) // cycle
    cycles = max(1, count // points)
    centres = [first + cycle * cycles * index + cycle * cycles // 2 for index in range(count // cycles)]
    speeds = [
        batch / round_seconds(rounds, around=centre, cycle=cycle, cycles=cycles, first=first) for centre in centres
    ]
    return [float(centre) for centre in centres], speeds
