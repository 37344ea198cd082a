"""What every eviction policy costs: the share of decoding that it takes to choose, and the memory that it keeps.

Choosing is timed from outside: the choice of every eviction, and between evictions what policies add to their running
scores. The share is that of whole eviction cycles with a full window. Beside it stands the time of these rounds over
that of `sliding` in turn, which holds everything else too: the queries that are kept, and thoughts that are moved. With
`case.depth` a round of `generate` of the bare base with transformers' default cache, that deep, is timed next to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.clock import RoundClock
from benchmarks.sampler.figures import Figure, Measured, over_repeats, ratios
from benchmarks.sampler.models import load_base, make_prompts, rollout_options, thought_model
from benchmarks.sampler.prefilled import generate_round
from benchmarks.sampler.timing import timed_calls
from thoughtcache.cache.eviction import EVICTION_POLICIES, make_eviction_policy
from thoughtcache.policy.handle import find_tuner
from thoughtcache.sampler.slots import slot_cache

FEW_QUERIES = 32
TARGETS = {"few queries": 0.08, "h2o": 0.15, "tova": 0.15}
"""Shares that choosing may take at most, for policies that look at `FEW_QUERIES` or fewer and for two by name."""
FASTER_THAN_GENERATE = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """Seconds of one run, on the wall and of the CPU.

    Attributes:
        choosing: of the choices.
        decoding: of the rounds with a full window.
    """

    choosing: tuple[float, float]
    decoding: tuple[float, float]


def measure(case: Case) -> Measured:
    """Shares, ratios and bytes of all policies, in uniform slots."""
    base = load_base(case)
    prompts = make_prompts(base, [case.prompt] * case.batch)
    plain = thought_model(case, eviction="sliding")
    figures, values = [], {}
    for name in sorted(set(EVICTION_POLICIES) - {"sliding"}):
        model = thought_model(case, eviction=name)
        own, sliding, deep = [], [], []
        for seed in range(case.repeats):
            own.append(_run(case, model, prompts, seed))
            if case.depth is not None:
                deep.append(generate_round(base, base, "dynamic", batch=case.batch, depth=case.depth, steps=case.steps))
            sliding.append(_run(case, plain, prompts, seed))
        shares = [ratios([run.choosing[of] for run in own], [run.decoding[of] for run in own]) for of in (0, 1)]
        times = [ratios([run.decoding[of] for run in own], [run.decoding[of] for run in sliding]) for of in (0, 1)]
        kept = _kept_bytes(case, model)
        figures += [
            over_repeats(f"{name}: share of choosing", shares[0], cpu=shares[1], **_target(case, name)),
            over_repeats(f"{name}: decoding / sliding", times[0], cpu=times[1], unit="x"),
            Figure(name=f"{name}: queries and scores kept per slot", value=kept / 2**10, unit="KiB"),
        ]
        if deep:
            rounds = case.tokens - 1 - case.window  # type: ignore[operator]
            speeds = [ratios([one[of] for one in deep], [run.decoding[of] / rounds for run in own]) for of in (0, 1)]
            title = f"{name}: speed / generate at {case.depth}, dynamic cache"
            figures.append(over_repeats(title, speeds[0], cpu=speeds[1], unit="x", at_least=FASTER_THAN_GENERATE))
        values[f"kept bytes, {name}"] = kept
    return Measured(figures=figures, values=values)


def _run(case: Case, model: Any, prompts: list[list[int]], seed: int) -> _Run:
    """One rollout, watched from the first full window on."""
    assert case.window is not None
    clock = RoundClock(model.base_model.backbone, case.device)
    # What happens behind the last round is in none of them.
    first, last = case.window, case.tokens - 1
    counts = timed_calls(slot_cache, "choose", "hear", device=case.device, when=lambda: first <= clock.rounds < last)
    with counts as calls, clock:
        tc.rollout(model, prompts, seed=seed, **rollout_options(case))
    wall, cpu = clock.seconds[case.window :], clock.cpu_seconds[case.window :]
    assert len(wall) % case.cycle == 0, len(clock.seconds)
    return _Run(choosing=(sum(calls.wall), sum(calls.cpu)), decoding=(sum(wall), sum(cpu)))


def _target(case: Case, name: str) -> dict[str, float]:
    """The share that choosing may take at most; empty where none was set."""
    if name in TARGETS:
        return {"at_most": TARGETS[name]}
    few = make_eviction_policy(name).num_queries(case.window or 0, case.cycle) <= FEW_QUERIES
    return {"at_most": TARGETS["few queries"]} if few else {}


def _kept_bytes(case: Case, model: Any) -> int:
    """Bytes of the log of queries and scores of one slot, all layers."""
    tuner = find_tuner(model)
    log = tuner.query_log(tuner.window_rules(tuner.thought_config.resolve_window(case.prompt), tuner.memory()))
    if log is None:
        return 0
    heads, size = tuner.kv_shape
    log.allocate(1, (tuner.query_heads, heads, size), tuner.model.dtype, tuner.model.device)
    return sum(kept.nbytes for kept in (*log.queries, *log.scores) if kept is not None)
