"""Decoding late in a sequence: our rollout against `generate` with transformers' default and static caches.

One rollout of ours really goes there. At the positions `case.at` its clock stops and `generate` decodes a few tokens
from caches of that depth (`prefilled.py`); our speed is that of the eviction cycles right before and behind the stop.
`generate` runs the bare base (a merged LoRA would cost the same) and PEFT's LoRA of our rank. At the last position the
stop is repeated, `case.repeats` times, a cycle apart. With `case.depth` the caches of `generate` are that deep wherever
our rollout is: under a full window our rounds do not depend on the position (`positions.py`), and this takes a tenth
of the time.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from statistics import median

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.clock import RoundClock
from benchmarks.sampler.figures import Curve, Figure, Measured, over_repeats, ratios
from benchmarks.sampler.models import load_base, lora_model, make_prompts, rollout_options, thought_model
from benchmarks.sampler.prefilled import CACHES, generate_round
from benchmarks.sampler.timing import speed_curve

TARGETS = {"dynamic": 3.5, "static": 2.0}
BASELINES = ("base", "LoRA")


def measure(case: Case) -> Measured:
    """Ratios at the last position, curves over all of them."""
    model, base, lora = thought_model(case), load_base(case), lora_model(case)
    models = {"base": (base, base), "LoRA": (lora, lora.get_base_model())}
    stops = stop_rounds(case)
    place = case.depth or case.at[-1]
    theirs: dict[tuple[str, str, int], tuple[float, float]] = {}

    def stop(at: int) -> None:
        for kind, name in product(CACHES, BASELINES):
            theirs[kind, name, at] = generate_round(
                *models[name], kind, batch=case.batch, depth=case.depth or case.prompt + at, steps=case.steps
            )

    prompts = make_prompts(base, [case.prompt] * case.batch)
    options = {**rollout_options(case), "max_new_tokens": stops[-1] + case.cycle + 2}
    interrupt = {at: partial(stop, at) for at in stops}
    with RoundClock(model.base_model.backbone, case.device, interrupt=interrupt) as clock:
        tc.rollout(model, prompts, **options)
    last = [at for at in stops if at >= case.at[-1]]
    ours = [beside(clock.seconds, at, case.cycle) for at in last]
    ours_cpu = [beside(clock.cpu_seconds, at, case.cycle) for at in last]
    figures = [
        over_repeats(
            f"speed at {place} / generate, {kind} cache, {name}",
            ratios([theirs[kind, name, at][0] for at in last], ours),
            cpu=ratios([theirs[kind, name, at][1] for at in last], ours_cpu),
            at_least=TARGETS[kind],
            unit="x",
        )
        for kind, name in product(CACHES, BASELINES)
    ]
    figures.append(Figure(name=f"tokens per second at {place}", value=case.batch / median(ours)))
    curves: dict[str, Curve] = {
        f"speed: generate, {kind} cache, {name}": (
            [float(case.depth or at) for at in case.at],
            [case.batch / theirs[kind, name, at][0] for at in case.at],
        )
        for kind, name in product(CACHES, BASELINES)
    }
    own = speed_curve(clock.seconds, batch=case.batch, cycle=case.cycle, first=case.window or 0)
    return Measured(figures=figures, curves={f"speed: {case.label}": own, **curves})


def stop_rounds(case: Case) -> list[int]:
    """The positions, the last one several times."""
    return [*case.at[:-1], *(case.at[-1] + case.cycle * repeat for repeat in range(case.repeats))]


def beside(rounds: list[float], at: int, cycle: int) -> float:
    """Seconds of one of our rounds, from the cycle before and the cycle behind a stop."""
    return sum(rounds[at - cycle : at + cycle]) / (2 * cycle)
