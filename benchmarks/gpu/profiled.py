"""What a profile shows: waits of the host, attention kernels, CUDA graphs, pinned copies."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity

import thoughtcache as tc
from benchmarks.gpu.check import Context
from benchmarks.gpu.memory import blank_rollout
from benchmarks.gpu.models import adapt, make_base, make_prompts
from benchmarks.gpu.profiler import Seen, overlapped, watch
from benchmarks.sampler.compiled import logprob_gap
from benchmarks.sampler.figures import Figure
from thoughtcache.sampler.engine import ROUNDS_BETWEEN_LOOKS

COMPILED_GAP = 2e-3
WAITING: dict[str, Any] = {"no records": {"anchors": False}, "states and K/V on the host": {"record_kv": "host"}}


def no_waits(context: Context) -> list[Figure]:
    """Waits of the host per round of decoding: a look every few rounds, and nothing else.

    Two lengths are compared, so that what a call does once does not count. The window is small, so that the rounds in
    between hold several evictions.
    """
    sizes = context.sizes
    model = adapt(make_base(context, torch.bfloat16, layers=sizes.profiled_layers), window=sizes.parity_window)
    prompts = make_prompts(model.get_base_model(), [16] * sizes.batch)
    rounds = sizes.profile_tokens[1] - sizes.profile_tokens[0]
    figures = []
    for name, options in WAITING.items():
        sample = partial(tc.rollout, model, prompts, **options)
        sample(max_new_tokens=sizes.profile_tokens[1])
        short, long = (watch(partial(sample, max_new_tokens=n), ProfilerActivity.CUDA) for n in sizes.profile_tokens)
        figures += [
            Figure(
                name=f"{name}: waits per round",
                value=(long.waits - short.waits) / rounds,
                at_most=1.25 / ROUNDS_BETWEEN_LOOKS,
            ),
            Figure(name=f"{name}: kernels per round", value=(len(long.kernels) - len(short.kernels)) / rounds),
            Figure(name=f"{name}: share of the time in which a kernel runs", value=long.busy_share),
        ]
    return figures


def attention_kernels(context: Context) -> list[Figure]:
    """Which implementation of attention ran, by phase; the one that forms all products ("math") must not."""
    sizes = context.sizes
    model = adapt(make_base(context, torch.bfloat16, layers=sizes.profiled_layers), window=sizes.window)
    equal = make_prompts(model.get_base_model(), [16] * sizes.batch)
    ragged = make_prompts(model.get_base_model(), [16 + row for row in range(sizes.batch)])
    rollout = blank_rollout(context, sizes.profile_learner_tokens)
    runs = {
        "sampler, equal lengths": partial(tc.rollout, model, equal, max_new_tokens=8),
        "sampler, ragged": partial(tc.rollout, model, ragged, max_new_tokens=8),
        "learner": lambda: tc.replay(model, [rollout], anchored=False).logprobs.sum().backward(),  # type: ignore[no-untyped-call]
    }
    figures = []
    for name, run in runs.items():
        run()
        attention = watch(run, ProfilerActivity.CPU).attention
        figures.append(Figure(name=f"{name}: math", value=attention.pop("attention_math", 0), at_most=0))
        figures += [Figure(name=f"{name}: {kind}", value=count) for kind, count in sorted(attention.items())]
    return figures


def graphs(context: Context) -> list[Figure]:
    """Compiled steps are CUDA graphs, are used, and give the eager tokens."""
    sizes = context.sizes
    model = adapt(make_base(context, torch.float32, layers=sizes.profiled_layers), window=sizes.parity_window)
    prompts = make_prompts(model.get_base_model(), [16] * sizes.batch)
    sample = partial(tc.rollout, model, prompts, max_new_tokens=sizes.parity_tokens)
    eager = sample()
    sample(compile=True)
    found: list[list[tc.Rollout]] = []
    seen = watch(lambda: found.append(sample(compile=True)), ProfilerActivity.CUDA)
    gap, common = logprob_gap(eager, found[0])
    rounds = sizes.parity_tokens - 1
    return [
        Figure(name="graph launches per round", value=seen.operators.get("cudaGraphLaunch", 0) / rounds, at_least=1.0),
        Figure(name="compiled against eager", value=gap, at_most=COMPILED_GAP, unit="nats"),
        Figure(name="share of tokens compared", value=common / (sizes.batch * sizes.parity_tokens), at_least=0.5),
    ]


def copies(context: Context) -> list[Figure]:
    """Records and logs that go to the host are pinned, and run beside kernels."""
    sizes = context.sizes
    model = adapt(make_base(context, torch.bfloat16, layers=sizes.profiled_layers), window=sizes.window)
    prompts = make_prompts(model.get_base_model(), [16] * sizes.batch)
    rollout = blank_rollout(context, sizes.profile_learner_tokens)
    runs = {
        "sampler": partial(tc.rollout, model, prompts, max_new_tokens=sizes.profile_tokens[1], record_kv="host"),
        "learner": lambda: tc.replay(model, [rollout], anchored=False, kv_log="host").logprobs.sum().backward(),  # type: ignore[no-untyped-call]
    }
    figures = []
    for name, run in runs.items():
        run()
        seen = watch(run, ProfilerActivity.CUDA)
        for kind, words in (("DtoH", "to the host"), ("HtoD", "back")):
            figures += _of_copies(seen, kind, f"{name}, {words}: ")
    return figures


def _of_copies(seen: Seen, kind: str, prefix: str) -> list[Figure]:
    """Share of the copying time that was pinned, and the share that ran beside kernels."""
    spans = seen.copies(kind)
    if not spans:
        return []
    whole = sum(span.end - span.start for span in spans)
    pinned = sum(span.end - span.start for span in spans if "Pinned" in span.name)
    device_time = seen.on_device[-1].end - seen.on_device[0].start
    return [
        Figure(name=f"{prefix}share pinned", value=pinned / whole, at_least=0.9),
        Figure(name=f"{prefix}share beside kernels", value=overlapped(spans, seen.kernels)),
        Figure(name=f"{prefix}share of the whole time", value=whole / device_time),
    ]
