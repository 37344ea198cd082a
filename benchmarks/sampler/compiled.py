"""`rollout(compile=True)` against without: tokens per second after a warm-up, and how far log-probabilities differ."""

from __future__ import annotations

import inspect
from dataclasses import replace

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.figures import Figure, Measured
from benchmarks.sampler.models import make_prompts, rollout_options, thought_model
from benchmarks.sampler.timing import interleaved
from thoughtcache.records import Rollout


def measure(case: Case) -> Measured:
    """Nothing where `rollout` has no such option."""
    if "compile" not in inspect.signature(tc.rollout).parameters:
        return Measured(figures=[Figure(name="rollout has no option `compile` here", value=float("nan"))])
    model = thought_model(case)
    prompts = make_prompts(model.get_base_model(), [case.prompt] * case.batch)
    found: dict[str, list[Rollout]] = {}

    def sample(name: str, compiled: bool) -> None:
        found[name] = tc.rollout(model, prompts, **rollout_options(replace(case, compile=compiled)))

    runs = {"eager": lambda: sample("eager", False), "compiled": lambda: sample("compiled", True)}
    first = interleaved(runs, 1, case.device)
    seconds = interleaved(runs, case.repeats, case.device)
    tokens = case.batch * case.tokens
    gap, common = logprob_gap(found["eager"], found["compiled"])
    return Measured(
        figures=[
            seconds["eager"].over(seconds["compiled"], "time without / with compile"),
            Figure(name="tokens per second, without, fastest", value=tokens / min(seconds["eager"].wall)),
            Figure(name="tokens per second, with, fastest", value=tokens / min(seconds["compiled"].wall)),
            Figure(name="largest difference of log-probabilities", value=gap, unit="nats"),
            Figure(name="share of tokens compared", value=common / tokens),
            Figure(name="first call, compilation included", value=first["compiled"].wall[0], unit="s"),
        ]
    )


def logprob_gap(one: list[Rollout], other: list[Rollout]) -> tuple[float, int]:
    """Largest difference up to the first token that differs, that token excluded; and how many tokens that are.

    Rounding that carries a drawn number over the border between two tokens sends a row elsewhere for good.
    """
    gap, common = 0.0, 0
    for a, b in zip(one, other, strict=True):
        pairs = list(zip(a.token_ids, b.token_ids, strict=False))
        same = next((at for at, (x, y) in enumerate(pairs) if x != y), len(pairs))
        common += same
        if same:
            gap = max(gap, (a.logprobs[:same] - b.logprobs[:same]).abs().max().item())
    return gap, common
