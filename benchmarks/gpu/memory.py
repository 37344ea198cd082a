"""Memory by the allocator: flat in the length, and as the planner says."""

from __future__ import annotations

from dataclasses import replace

import torch

import thoughtcache as tc
from benchmarks.gpu.check import Context
from benchmarks.gpu.models import adapt, make_base, make_prompts
from benchmarks.learner_case import Case, build_config, build_rollout
from benchmarks.sampler.figures import Figure
from thoughtcache.config import ThoughtConfig
from thoughtcache.measuring.peak_memory import PeakMemory
from thoughtcache.planning.memory.parts import highest, total
from thoughtcache.planning.memory.rollout import rollout_parts
from thoughtcache.planning.plan import learner_bytes
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.recipes.plan.measure import measure
from thoughtcache.records import Rollout

FLAT = 1.1
PLANNED = 0.1


def sampler_is_flat(context: Context) -> list[Figure]:
    """Peak of a long rollout against that of a short one; what is recorded for a learner is left out."""
    sizes = context.sizes
    model = adapt(make_base(context, torch.bfloat16, layers=sizes.slice_layers), window=sizes.window)
    prompts = make_prompts(model.get_base_model(), [32] * sizes.batch)
    peaks = []
    for tokens in (sizes.flat_tokens[0], *sizes.flat_tokens):  # the first one warms up
        with PeakMemory(context.device) as memory:
            tc.rollout(model, prompts, max_new_tokens=tokens, anchors=False)
        peaks.append(memory.peak_mib)
    return _flat(context, peaks[1:], sizes.flat_tokens)


def learner_is_flat(context: Context) -> list[Figure]:
    """Peak of a learner step on a long rollout against that on a short one, keys and values on the host."""
    sizes = context.sizes
    model = adapt(make_base(context, torch.bfloat16, layers=sizes.slice_layers), window=sizes.learner_window)
    peaks = []
    for tokens in (sizes.flat_learner_tokens[0], *sizes.flat_learner_tokens):
        rollout = blank_rollout(context, tokens)
        with PeakMemory(context.device) as memory:
            tc.replay(model, [rollout], anchored=False, kv_log="host").logprobs.sum().backward()  # type: ignore[no-untyped-call]
        peaks.append(memory.peak_mib)
    return _flat(context, peaks[1:], sizes.flat_learner_tokens)


def _flat(context: Context, peaks: list[float], tokens: tuple[int, int]) -> list[Figure]:
    # The resident set of a process of tiny models is noise.
    limit = {"at_most": FLAT} if context.on_gpu else {}
    return [
        *(Figure(name=f"peak at {n} tokens", value=peak, unit="MiB") for n, peak in zip(tokens, peaks, strict=True)),
        Figure(name="long / short", value=peaks[1] / max(peaks[0], 1e-9), unit="x", **limit),
    ]


def blank_rollout(context: Context, tokens: int) -> Rollout:
    """Random tokens under the sliding schedule, without states."""
    case = Case(shape=context.sizes.model, learner="reverse", tokens=tokens, window=context.sizes.learner_window)
    return build_rollout(case, tokens)


def planner(context: Context) -> list[Figure]:
    """The planner's closed forms against the allocator, in child processes."""
    sizes = context.sizes
    config = build_config(sizes.model, layers=sizes.profiled_layers)
    thought = ThoughtConfig(r=32, num_global_tokens=32, window=sizes.window, state_rule="delta")
    setting = PlanSetting(
        model=config, thought=thought, prompt_tokens=64, max_new_tokens=2 * sizes.flat_tokens[0], batch=sizes.batch,
        group=sizes.batch, device_type=context.device.type, dtype="bfloat16" if context.on_gpu else "float32",
    )  # fmt: skip
    chunks = {"whole segments": None, "chunks of 128": 128}
    figures = []
    for name, chunk_tokens in chunks.items():
        planned = replace(setting, chunk_tokens=chunk_tokens)
        figures.append(_over(f"learner, {name}", learner_bytes(planned), measure(planned).peak_bytes, context))
    sampled = replace(setting, max_new_tokens=sizes.window + 8)
    closed = total(highest(rollout_parts(sampled).values()))
    figures.append(_over("sampler", closed, measure(sampled, "rollout").peak_bytes, context))
    return figures


def _over(name: str, planned: int, measured: int, context: Context) -> Figure:
    """How far the plan is off."""
    limit = {"at_most": PLANNED} if context.on_gpu else {}
    return Figure(name=f"{name}: planned / measured - 1, absolute", value=abs(planned / max(measured, 1) - 1), **limit)
