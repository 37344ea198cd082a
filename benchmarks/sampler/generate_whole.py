"""Whole generations from short prompts, before any eviction: our rollout against `generate`, taking turns.

Here the bounded cache wins nothing; what is compared is the price of a round. `generate` runs the bare base (a merged
LoRA would cost the same) and PEFT's LoRA of our rank, with its default cache. Like for like are the bare base in both,
and PEFT's LoRA against our adapter; our adapter against the bare base also pays for the adapter.
"""

from __future__ import annotations

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.figures import Figure, Measured
from benchmarks.sampler.models import (
    load_base,
    lora_model,
    make_prompts,
    rollout_options,
    sample_generate,
    thought_model,
    uneven_lengths,
)
from benchmarks.sampler.timing import interleaved

TARGET = 0.95
WARM_UP = 8
"""Tokens before anything is timed."""


def measure(case: Case) -> Measured:
    """Time of generate over ours, for prompts of one length and of many."""
    model, base, lora = thought_model(case), load_base(case), lora_model(case)
    lengths = {"even": [case.prompt] * case.batch, "uneven": uneven_lengths(case.batch, case.prompt)}
    figures = []
    for shape, sizes in lengths.items():
        prompts = make_prompts(base, sizes)

        def ours(prompts: list[list[int]] = prompts) -> None:
            tc.rollout(model, prompts, **rollout_options(case))

        def ours_bare(prompts: list[list[int]] = prompts) -> None:
            with model.disable_adapter():
                tc.rollout(model, prompts, **rollout_options(case))

        def bare(prompts: list[list[int]] = prompts) -> None:
            assert sample_generate(base, prompts, case.tokens).shape[1] == case.tokens

        def adapted(prompts: list[list[int]] = prompts) -> None:
            assert sample_generate(lora, prompts, case.tokens).shape[1] == case.tokens

        runs = {"ours": ours, "ours, base": ours_bare, "base": bare, "LoRA": adapted}
        if not figures:
            tc.rollout(model, prompts, **{**rollout_options(case), "max_new_tokens": WARM_UP})
            sample_generate(base, prompts, WARM_UP)
            sample_generate(lora, prompts, WARM_UP)
        seconds = interleaved(runs, case.repeats, case.device)
        for theirs, own in (("base", "ours, base"), ("LoRA", "ours"), ("base", "ours")):
            title = f"time of generate, {theirs} / {own}, {shape} prompts"
            figures.append(seconds[theirs].over(seconds[own], title, at_least=TARGET))
        speed = case.batch * case.tokens / min(seconds["ours"].wall)
        figures.append(Figure(name=f"tokens per second, {shape} prompts, fastest", value=speed))
    return Measured(figures=figures)
