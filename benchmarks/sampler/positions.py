"""Speed and memory against position in one long rollout.

Speed at a position: batch over the time of a round, from whole eviction cycles around it (`timing.py`). Flat memory:
the most in use during the last three quarters of a run over that at the end of the first quarter, once as it is and
once without what the sampler must hand back in the end, which grows with the tokens: the state after every eviction,
and a token and a log-probability per step.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.clock import RoundClock, used_mib
from benchmarks.sampler.figures import Curve, Figure, Measured, over_repeats
from benchmarks.sampler.models import make_prompts, rollout_options, thought_model
from benchmarks.sampler.timing import round_seconds, speed_curve
from thoughtcache.planning.memory import MIB
from thoughtcache.records import Rollout

SPEED_TARGET, MEMORY_TARGET = 0.97, 1.02
BYTES_PER_TOKEN = 12
"""A token (8) and a log-probability (4)."""


def measure(case: Case) -> Measured:
    """Speed at the positions `case.at` (early, late), memory, and the curve along the last rollout."""
    model = thought_model(case)
    prompts = make_prompts(model.get_base_model(), [case.prompt] * case.batch)
    first = 0 if case.window is None else case.window
    wall, cpu, completed, flat = [], [], 0, (math.nan, math.nan)
    at_rest = used_mib(torch.device(case.device))
    for repeat in range(case.repeats):
        clock = RoundClock(model.base_model.backbone, case.device, memory_every=8)
        with clock:
            rollouts = tc.rollout(model, prompts, seed=repeat, **rollout_options(case))
        completed = min(len(rollout.token_ids) for rollout in rollouts)
        if repeat == 0:
            flat = flatness(clock.memory, rollouts)
        for rounds, found in ((clock.seconds, wall), (clock.cpu_seconds, cpu)):
            found.append(late_over_early(rounds, case, first))
    figures = [_count(case, completed)]
    if case.at and case.window is not None:
        name = f"speed at {case.at[-1]} / speed at {case.at[0]}"
        figures.append(over_repeats(name, wall, cpu=cpu, at_least=SPEED_TARGET, unit="x"))
    if case.window is not None:
        name = "memory, last 3/4 over the end of the first 1/4"
        figures.append(Figure(name=f"{name}, without records", value=flat[1], at_most=MEMORY_TARGET, unit="x"))
        figures.append(Figure(name=name, value=flat[0], unit="x"))
    curve = speed_curve(clock.seconds, batch=case.batch, cycle=case.cycle, first=first)
    figures.append(Figure(name="tokens per second, median of the run", value=sorted(curve[1])[len(curve[1]) // 2]))
    peak = max(mib for _, mib in clock.memory) - at_rest
    figures.append(Figure(name="memory at its peak, over the model at rest", value=peak, unit="MiB"))
    figures.append(Figure(name="of that, records", value=records_bytes(rollouts, case.tokens) / MIB, unit="MiB"))
    curves = {f"speed: {case.label}": curve, **memory_curves(case.label, clock.memory, rollouts, at_rest)}
    return Measured(figures=figures, curves=curves, values={"memory_at_rest_mib": at_rest})


def memory_curves(
    label: str, memory: list[tuple[int, float]], rollouts: list[Rollout], at_rest: float, points: int = 100
) -> dict[str, Curve]:
    """Memory over that of the model at rest; under a window also without the records."""
    chosen = memory[:: max(1, len(memory) // points)]
    x = [float(at) for at, _ in chosen]
    bare = [mib - at_rest - records_bytes(rollouts, at) / MIB for at, mib in chosen]
    curves = {f"memory: {label}": (x, [mib - at_rest for _, mib in chosen])}
    return {**curves, f"memory: {label}, without records": (x, bare)} if rollouts[0].evictions else curves


def _count(case: Case, completed: int) -> Figure:
    """Whether every row reached its length."""
    return Figure(name="tokens per row, completed", value=completed, at_least=case.tokens)


def late_over_early(rounds: list[float], case: Case, first: int) -> float:
    """Speed at the last position over that at the first."""
    if not case.at:
        return math.nan
    options: dict[str, Any] = {"cycle": case.cycle, "cycles": case.cycles, "first": first}
    early, late = (round_seconds(rounds, around=at, **options) for at in (case.at[0], case.at[-1]))
    return early / late


def flatness(memory: list[tuple[int, float]], rollouts: list[Rollout]) -> tuple[float, float]:
    """Growth of memory after the first quarter: as it is, and without the records."""
    quarter = len(memory) // 4
    if not quarter:
        return math.nan, math.nan
    plain = [mib for _, mib in memory]
    bare = [mib - records_bytes(rollouts, at) / MIB for at, mib in memory]
    return max(plain[quarter:]) / plain[quarter - 1], max(bare[quarter:]) / bare[quarter - 1]


def records_bytes(rollouts: list[Rollout], tokens: int) -> int:
    """What the rollouts carried after so many tokens of each."""
    total = 0
    for rollout in rollouts:
        past = sum(eviction.before_token <= tokens for eviction in rollout.evictions)
        total += min(tokens, len(rollout.token_ids)) * BYTES_PER_TOKEN
        if rollout.states is not None and rollout.evictions:
            total += past * rollout.states[0].numel() * rollout.states.element_size()
    return total
