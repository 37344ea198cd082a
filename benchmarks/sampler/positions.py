"""Speed and memory against position in one long rollout.

Late against early: a rollout stops at its late position and a fresh one of the same prompts goes to the early position;
then the last eviction cycle of the fresh one is compared with the next but one of the stopped one (the next begins with
cold caches). That is done several times, so a machine that changes its speed during a long run meets both.

The curve and memory are those of a run without stops. Flat memory: the most in use during the last three quarters of a
run over that at the end of the first quarter, once as it is and once without what the sampler must hand back in the
end, which grows with the tokens: the state after every eviction, and a token and a log-probability per step.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.clock import RoundClock, used_mib
from benchmarks.sampler.figures import Curve, Figure, Measured, over_repeats, ratios
from benchmarks.sampler.models import make_prompts, rollout_options, thought_model
from benchmarks.sampler.timing import speed_curve
from thoughtcache.measuring.peak_memory import MIB
from thoughtcache.records import Rollout

SPEED_TARGET, MEMORY_TARGET = 0.97, 1.02
BYTES_PER_TOKEN = 12
"""A token (8) and a log-probability (4)."""


def measure(case: Case) -> Measured:
    """Speed at the positions `case.at` (early, late), memory, and the curve along the last rollout."""
    model = thought_model(case)
    prompts = make_prompts(model.get_base_model(), [case.prompt] * case.batch)
    first = 0 if case.window is None else case.window
    at_rest = used_mib(torch.device(case.device))
    with RoundClock(model.base_model.backbone, case.device, memory_every=8) as clock:
        rollouts = tc.rollout(model, prompts, **rollout_options(case))
    figures = [_count(case, min(len(rollout.token_ids) for rollout in rollouts))]
    if case.at and case.window is not None:
        figures.append(late_over_early(case, model, prompts))
    if case.window is not None:
        flat = flatness(clock.memory, rollouts)
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


def late_over_early(case: Case, model: Any, prompts: list[list[int]]) -> Figure:
    """Speed at the last position over that at the first, `case.cycles` pairs."""
    other, (early, late), options = thought_model(case), (case.at[0], case.at[-1]), rollout_options(case)
    pairs: list[tuple[float, float]] = []

    def stop() -> None:
        with RoundClock(other.base_model.backbone, case.device) as clock:
            tc.rollout(other, prompts, **{**options, "max_new_tokens": early + case.cycle + 2})
        span = slice(early, early + case.cycle)
        pairs.append((sum(clock.seconds[span]), sum(clock.cpu_seconds[span])))

    stops = [late + 2 * case.cycle * index for index in range(case.cycles)]
    counted = [slice(at + case.cycle, at + 2 * case.cycle) for at in stops]
    with RoundClock(model.base_model.backbone, case.device, interrupt=dict.fromkeys(stops, stop)) as clock:
        tc.rollout(model, prompts, **{**options, "max_new_tokens": counted[-1].stop + 2})
    wall, cpu = (
        ratios([pair[kind] for pair in pairs], [sum(seconds[span]) for span in counted])
        for kind, seconds in enumerate((clock.seconds, clock.cpu_seconds))
    )
    return over_repeats(f"speed at {late} / speed at {early}", wall, cpu=cpu, at_least=SPEED_TARGET, unit="x")


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
