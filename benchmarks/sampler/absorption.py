"""The share of decoding that eviction and absorption take, and the price of the state against plain LoRA.

`SlotCache.evict`, which absorbs, is timed from outside, between two waits for the device on a GPU. The share is that
of whole eviction cycles with a full window; the rounds before would only make it smaller.
"""

from __future__ import annotations

from typing import Any

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.clock import RoundClock
from benchmarks.sampler.figures import Figure, Measured, over_repeats
from benchmarks.sampler.models import make_prompts, rollout_options, thought_model, uneven_lengths
from benchmarks.sampler.timing import interleaved, timed_calls
from thoughtcache.sampler.slots.slot_cache import SlotCache

TARGET = 0.03


def measure(case: Case) -> Measured:
    """Shares in uniform and in ragged slots."""
    model = thought_model(case)
    base = model.get_base_model()
    assert case.window is not None
    lengths = {"uniform": [case.prompt] * case.batch, "ragged": uneven_lengths(case.batch, case.prompt)}
    figures, values = [], {}
    for shape, sizes in lengths.items():
        prompts, shares, milliseconds = make_prompts(base, sizes), [], []
        for repeat in range(case.repeats):
            clock = RoundClock(model.base_model.backbone, case.device)
            with timed_calls(SlotCache, "evict", device=case.device) as evictions, clock:
                tc.rollout(model, prompts, seed=repeat, **rollout_options(case))
            decoding = clock.seconds[case.window :]
            assert len(decoding) % case.cycle == 0, len(decoding)
            shares.append(sum(evictions.wall) / sum(decoding))
            milliseconds += [1000 * value for value in evictions.wall]
        figures.append(over_repeats(f"share of eviction and absorption, {shape} slots", shares, at_most=TARGET))
        figures.append(over_repeats(f"one eviction, {shape} slots", milliseconds, unit="ms"))
        values[f"evictions, {shape}"] = len(milliseconds)
    figures.append(_price_of_state(case, model))
    return Measured(figures=figures, values=values)


def _price_of_state(case: Case, model: Any) -> Figure:
    """Time with the state over that of a LoRA of the same rank under the same window."""
    plain = thought_model(case, initial_state="identity", absorb=False)
    prompts = make_prompts(model.get_base_model(), [case.prompt] * case.batch)
    runs = {
        name: lambda chosen=chosen: tc.rollout(chosen, prompts, **rollout_options(case))
        for name, chosen in (("state", model), ("LoRA", plain))
    }
    seconds = interleaved(runs, case.repeats, case.device)
    name = "time with state / plain LoRA under the same window"
    return seconds["state"].over(seconds["LoRA"], name)
