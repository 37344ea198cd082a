"""Decoding speed under the window: late against early positions, and the price of eviction and absorption.

Gate: replay of the sampled rollouts must agree with sampling before any time is reported. It runs in fp64, where a
wrong step shows and rounding, which 448 tokens of feedback through the state amplify to 1e-4 in fp32, does not.
"""

from __future__ import annotations

import time

import peft
import torch
from rich.console import Console

import thoughtcache as tc
from thoughtcache.tasks.reasoner import load_reasoner

WINDOW, BATCH, LENGTH, RANK, GATE = 64, 8, 448, 8, 1e-9


def _model(**options: object) -> peft.PeftModel:
    base, _ = load_reasoner()
    torch.manual_seed(0)
    config = tc.ThoughtConfig(r=RANK, num_global_tokens=RANK, window=WINDOW, **options)  # type: ignore[arg-type]
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model  # type: ignore[return-value]


def _seconds(model: peft.PeftModel, length: int, repeats: int = 3) -> float:
    """Fastest of some runs, in seconds."""
    prompts = [[1, 3, 4, 5, 13]] * BATCH
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        tc.rollout(model, prompts, max_new_tokens=length, ignore_eos=True)
        times.append(time.perf_counter() - started)
    return min(times)


def benchmark_decoding(console: Console) -> dict[str, float]:
    """Ratios measured in one run on this machine.

    Raises:
        RuntimeError: if the gate is not green.
    """
    model = _model(state_rule="gated").double()
    rollouts = tc.rollout(model, [[1, 3, 4, 5, 13]] * 2, max_new_tokens=LENGTH, ignore_eos=True)
    with torch.no_grad():
        replayed = tc.replay(model, rollouts).logprobs
    gap = (replayed - torch.stack([r.logprobs for r in rollouts])).abs().max().item()
    if gap > GATE:
        raise RuntimeError(f"sampling and replay differ by {gap:.1e} (allowed {GATE:.0e}); no speed is reported")
    console.print(f"gate: sampling and replay agree to {gap:.1e} in fp64")
    model = model.float()
    half, whole = _seconds(model, LENGTH // 2), _seconds(model, LENGTH)
    plain = _seconds(_model(initial_state="identity", absorb=False), LENGTH)
    return {
        "tokens per second, whole rollout": BATCH * LENGTH / whole,
        "speed of the second half / first half": half / (whole - half),
        "time with state / time with plain LoRA under the same window": whole / plain,
    }
