"""Many completions of one long prompt against one: the prompt is processed once."""

from __future__ import annotations

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.figures import Measured, over_repeats
from benchmarks.sampler.models import make_prompts, rollout_options, thought_model
from benchmarks.sampler.timing import interleaved

TARGET = 1.2


def measure(case: Case) -> Measured:
    """Time to the first token of `case.batch` completions over that of one."""
    model = thought_model(case)
    (prompt,) = make_prompts(model.get_base_model(), [case.prompt])
    options = {**rollout_options(case), "max_new_tokens": 1}
    runs = {
        "many": lambda: tc.rollout(model, [prompt] * case.batch, **options),
        "one": lambda: tc.rollout(model, [prompt], **options),
    }
    interleaved(runs, 1, case.device)  # warm up
    seconds = interleaved(runs, case.repeats, case.device)
    name = f"{case.batch} completions of {case.prompt} tokens / one prefill"
    return Measured(
        figures=[
            seconds["many"].over(seconds["one"], name, at_most=TARGET),
            over_repeats("one prefill", seconds["one"].wall, cpu=seconds["one"].cpu, unit="s"),
        ]
    )
