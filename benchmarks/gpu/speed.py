"""Tokens per second at a depth against `generate`, and learner steps against TRL's."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import peft
import torch

import thoughtcache as tc
from benchmarks.gpu.check import Context
from benchmarks.gpu.models import RANK, adapt, make_base, make_prompts
from benchmarks.learner_case import Case, build_model, build_rollout, prepare, step
from benchmarks.sampler.clock import RoundClock
from benchmarks.sampler.figures import Figure
from benchmarks.sampler.models import randomised
from benchmarks.sampler.prefilled import CACHES, generate_round
from benchmarks.sampler.timing import synchronise
from thoughtcache.cache.schedule import evict_count
from thoughtcache.measuring.peak_memory import PeakMemory

CYCLES = 3
GENERATE_STEPS = 24
COMPILING_ROUNDS = 8
PROMPT = 32
LORA = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
LEARNERS: dict[str, dict[str, Any]] = {
    "TRL": {"learner": "trl"},
    "ours, chunks of 1024": {"learner": "reverse", "chunk_tokens": 1024},
    "ours": {"learner": "reverse"},
}


def decoding(context: Context) -> list[Figure]:
    """Eager steps of both: ours under a full window, and `generate` with its default and a static cache.

    `generate` runs the bare base and PEFT's LoRA of our rank.
    """
    sizes = context.sizes
    base, lora_base = make_base(context, torch.bfloat16), make_base(context, torch.bfloat16)
    models = {"base": (base, base), "LoRA": (randomised(peft.get_peft_model(lora_base, LORA)), lora_base)}
    theirs: dict[str, float] = {}
    for name, (model, inner) in models.items():
        round_of = partial(generate_round, model, inner, batch=sizes.batch, steps=GENERATE_STEPS, disable_compile=True)
        round_of("dynamic", depth=sizes.depths[0])  # kernels are loaded and chosen
        for kind, depth in product(CACHES, sizes.depths):
            theirs[f"{name}, eager, {kind} cache, {depth}"] = round_of(kind, depth=depth)[0]
    return _against(theirs, _our_round(context, base, compiled=False), sizes.batch, "eager")


def compiled_decoding(context: Context) -> list[Figure]:
    """Compiled steps of both: ours, and `generate` with a static cache, which transformers compiles by itself."""
    sizes = context.sizes
    base = make_base(context, torch.bfloat16)
    depth = sizes.depths[len(sizes.depths) // 2]
    ours = _our_round(context, base, compiled=True)
    base = make_base(context, torch.bfloat16)
    options = {"batch": sizes.batch, "depth": depth, "steps": GENERATE_STEPS, "warm_up": COMPILING_ROUNDS}
    theirs = {f"base, compiled, static cache, {depth}": generate_round(base, base, "static", **options)[0]}
    return _against(theirs, ours, sizes.batch, "compiled")


def _against(theirs: dict[str, float], ours: float, batch: int, mode: str) -> list[Figure]:
    """Tokens per second of all, and the ratios of ours."""
    figures = [Figure(name=f"ours, {mode}", value=batch / ours, unit="tokens/s")]
    for name, seconds in theirs.items():
        figures.append(Figure(name=f"generate, {name}", value=batch / seconds, unit="tokens/s"))
        figures.append(Figure(name=f"ours / generate, {name}", value=seconds / ours, unit="x"))
    return figures


def _our_round(context: Context, base: torch.nn.Module, *, compiled: bool) -> float:
    """Seconds of one round under a full window, over whole eviction cycles."""
    sizes = context.sizes
    model = adapt(base, window=sizes.window)
    prompts = make_prompts(model.get_base_model(), [PROMPT] * sizes.batch)
    cycle = evict_count(sizes.window, 0.25)
    tokens = sizes.window + CYCLES * cycle + 1
    if compiled:
        # No hook in what is compiled: the difference of two lengths instead.
        seconds = []
        for count in (tokens, tokens + CYCLES * cycle, tokens, tokens + CYCLES * cycle):
            synchronise(context.device)
            started = time.perf_counter()
            tc.rollout(model, prompts, max_new_tokens=count, anchors=False, compile=True)
            synchronise(context.device)
            seconds.append(time.perf_counter() - started)
        return (seconds[3] - seconds[2]) / (CYCLES * cycle)
    with RoundClock(model.base_model.backbone, context.device) as clock:
        tc.rollout(model, prompts, max_new_tokens=tokens, anchors=False)
    return sum(clock.seconds[-CYCLES * cycle :]) / (CYCLES * cycle)


def learner(context: Context, number: int) -> list[Figure]:
    """Time and peak of one step, prompt of 64 tokens, against TRL's learner (fused head, gradient checkpointing).

    Args:
        context: where and how large.
        number: of the length, in `Sizes.learner_tokens`.
    """
    sizes = context.sizes
    tokens = sizes.learner_tokens[number]
    figures, trl = [], (0.0, 0.0)
    for name, options in LEARNERS.items():
        case = Case(
            shape=sizes.model,
            tokens=tokens,
            window=sizes.learner_window,
            rank=RANK,
            dtype="bfloat16" if context.on_gpu else "float32",
            device=context.device.type,
            kv_log="device",
            **options,
        )
        seconds, peak = _learner_step(context, case)
        figures.append(Figure(name=f"{name}, {tokens} tokens", value=seconds, unit="s"))
        figures.append(Figure(name=f"{name}, {tokens} tokens, peak", value=peak, unit="MiB"))
        if name == "TRL":
            trl = seconds, peak
        else:
            figures.append(Figure(name=f"{name} / TRL, {tokens} tokens, time", value=seconds / trl[0], unit="x"))
            figures.append(Figure(name=f"{name} / TRL, {tokens} tokens, peak", value=peak / trl[1], unit="x"))
    return figures


def _learner_step(context: Context, case: Case) -> tuple[float, float]:
    """Seconds and peak (MiB over the model at rest) of one step after one that warms up."""
    model = build_model(case)
    prepare(model, case)
    rollout = build_rollout(case, case.tokens)
    step(model, build_rollout(replace(case, tokens=case.window + 64), case.window + 64), case)
    with PeakMemory(context.device) as memory:
        started = time.perf_counter()
        step(model, rollout, case)
        synchronise(context.device)
        seconds = time.perf_counter() - started
    return seconds, memory.peak_mib
