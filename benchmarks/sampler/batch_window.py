"""Tokens per second against batch and window, with the window full; `generate` beside it where it is asked for."""

from __future__ import annotations

from statistics import median

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.clock import RoundClock
from benchmarks.sampler.figures import Figure, Measured
from benchmarks.sampler.models import load_base, make_prompts, rollout_options, thought_model
from benchmarks.sampler.prefilled import generate_round
from benchmarks.sampler.timing import round_seconds

ROUNDS = 128
"""At least so many count."""


def measure(case: Case) -> Measured:
    """Ours with a full window, or with `case.window` None `generate` of the base at the depth `case.at`."""
    if case.window is None:
        base = load_base(case)
        options = {"batch": case.batch, "depth": case.at[0], "steps": case.steps}
        seconds = median(generate_round(base, base, "dynamic", **options)[0] for _ in range(case.repeats))
        name = f"generate at {case.at[0]}, dynamic cache, base"
    else:
        model = thought_model(case)
        cycles = -(-ROUNDS // case.cycle)
        rounds = cycles * case.cycle
        options = {**rollout_options(case), "max_new_tokens": case.window + rounds + 2}
        prompts = make_prompts(model.get_base_model(), [case.prompt] * case.batch)
        with RoundClock(model.base_model.backbone, case.device) as clock:
            tc.rollout(model, prompts, **options)
        middle = case.window + rounds // 2
        seconds = round_seconds(clock.seconds, around=middle, cycle=case.cycle, cycles=cycles, first=case.window)
        name = f"window {case.window}"
    return Measured(
        figures=[Figure(name=f"tokens per second, batch {case.batch}, {name}", value=case.batch / seconds)],
        curves={f"batch: {name}": ([float(case.batch)], [case.batch / seconds])},
    )
