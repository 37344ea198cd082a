"""One policy, three executions, and its gradient, on the device.

In fp64 a wrong step shows and rounding does not. In fp32 and bf16 the limits are a few times what was measured on an
H200 (docs/lab-log.md), so that they catch a wrong kernel or mask and not another order of sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import thoughtcache as tc
from benchmarks.gpu.check import Context
from benchmarks.gpu.models import adapt, make_base, make_prompts
from benchmarks.sampler.figures import Figure
from benchmarks.sampler.gate import in_fp64
from thoughtcache.records import Rollout
from thoughtcache.tasks.embedded.reasoner import load_reasoner

GAPS = {torch.float64: 1e-10, torch.float32: 2e-3, torch.bfloat16: 0.3}
"""Largest difference of a log-probability in nats, by dtype."""
GRADIENTS = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 0.1}
"""Relative difference (Euclidean norm over all trainable parameters), by dtype."""
LENGTHS = [5, 19, 2, 11]
LEARNERS: dict[str, dict[str, Any]] = {
    "reverse": {"kv_log": "host"},
    "reverse, small chunks": {"chunk_tokens": 7},
    "layers": {"checkpoint_layers": True},
}


def fp64(context: Context) -> list[Figure]:
    """The embedded reasoner in fp64: every rule of positions and an eviction policy that chooses."""
    figures = []
    for name, changes in (
        ("sliding", {}),
        ("rolling positions", {"positions": "rolling"}),
        ("random eviction", {"eviction": "random"}),
    ):
        base: Any = load_reasoner()[0].to(context.device).eval()
        base.generation_config.eos_token_id = None
        model = in_fp64(adapt(base, window=context.sizes.parity_window, r=8, num_global_tokens=8, **changes))
        figures += _gaps(model, context, torch.float64, f"{name}, ")
        figures += _gradient_gaps(model, context, torch.float64, f"{name}, ")
    return figures


def fp32(context: Context) -> list[Figure]:
    """The model of the sizes in fp32."""
    model = adapt(make_base(context, torch.float32), window=context.sizes.parity_window)
    return [*_gaps(model, context, torch.float32), *_gradient_gaps(model, context, torch.float32)]


def bf16(context: Context) -> list[Figure]:
    """The model of the sizes in bf16; the state and its encoder stay in fp32."""
    model = adapt(make_base(context, torch.bfloat16), window=context.sizes.parity_window)
    return [*_gaps(model, context, torch.bfloat16), *_gradient_gaps(model, context, torch.bfloat16)]


def generate(context: Context) -> list[Figure]:
    """Greedy tokens of `generate` with our cache against those of `rollout`, fp32."""
    model = adapt(make_base(context, torch.float32, layers=context.sizes.slice_layers), window=8)
    prompt = make_prompts(model.get_base_model(), [7])
    tokens = context.sizes.parity_tokens
    ours = tc.rollout(model, prompt, max_new_tokens=tokens, temperature=0.0)[0].token_ids
    ids = torch.tensor(prompt, device=context.device)
    theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)[
        0, ids.shape[1] :
    ].tolist()
    same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / tokens
    return [Figure(name="share of equal tokens", value=same, at_least=1.0)]


def _rollouts(model: nn.Module, context: Context) -> list[Rollout]:
    """Fewer slots than prompts, so that slots are ragged, refilled and dropped."""
    prompts = make_prompts(model.get_base_model(), LENGTHS)  # type: ignore[operator]
    return tc.rollout(model, prompts, max_new_tokens=context.sizes.parity_tokens, batch_size=3)


def _gaps(model: nn.Module, context: Context, dtype: torch.dtype, prefix: str = "") -> list[Figure]:
    rollouts = _rollouts(model, context)
    with torch.no_grad():
        executions = {
            "replay": tc.replay(model, rollouts).logprobs,
            # Without a neighbour there is no padding, and so no mask: another kernel.
            "replay, row by row": [tc.replay(model, [rollout]).logprobs[0] for rollout in rollouts],
            "naive": tc.naive_logprobs(model, rollouts).logprobs,
        }
    figures = []
    for name, rows in executions.items():
        gaps = [
            (row[: len(rollout.token_ids)] - rollout.logprobs.to(row.device)).abs()
            for row, rollout in zip(rows, rollouts, strict=True)
        ]
        limit = GAPS[dtype]
        largest = max(gap.max().item() for gap in gaps)
        # The naive execution has no anchors: what rounding does to the state stays in it.
        judged = {"at_most": limit} if name != "naive" or dtype != torch.bfloat16 else {}
        figures.append(Figure(name=f"{prefix}{name} against sampling, largest", value=largest, unit="nats", **judged))
        mean = torch.cat(gaps).mean().item()
        figures.append(Figure(name=f"{prefix}{name} against sampling, mean", value=mean, unit="nats"))
    return figures


def _gradient_gaps(model: nn.Module, context: Context, dtype: torch.dtype, prefix: str = "") -> list[Figure]:
    """The reverse replay, with checkpoints of layers and without, against plain autograd through all segments."""
    rollouts = _rollouts(model, context)
    figures = []
    for rows, chosen in (("", rollouts), ("one row, ", rollouts[:1])):
        plain = _gradient(model, chosen, recompute=False)
        for name, options in LEARNERS.items():
            gap = _distance(_gradient(model, chosen, **options), plain)
            figures.append(
                Figure(name=f"{prefix}gradient, {rows}{name} / plain autograd", value=gap, at_most=GRADIENTS[dtype])
            )
    return figures


def _gradient(model: nn.Module, rollouts: list[Rollout], **options: Any) -> list[Tensor]:
    model.zero_grad()
    tc.replay(model, rollouts, **options).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]


def _distance(one: Iterable[Tensor], other: list[Tensor]) -> float:
    """Relative Euclidean distance of two lists of tensors."""
    apart = torch.stack([(a - b).double().square().sum() for a, b in zip(one, other, strict=True)]).sum()
    size = torch.stack([b.double().square().sum() for b in other]).sum()
    return float((apart / size).sqrt())
