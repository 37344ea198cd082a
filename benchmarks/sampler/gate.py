"""Correctness, before any figure: replay agrees with sampling in fp64, and greedy decoding is that of transformers.

In fp64 a wrong step shows and rounding, which feedback through the state amplifies, does not; transformers' norms round
to fp32 whatever their input is, so torch's own take their place. Prompts of unequal
lengths share fewer slots than there are prompts, so slots are ragged, refilled and dropped.
"""

from __future__ import annotations

from typing import Any

import torch

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.figures import Figure, Measured
from benchmarks.sampler.models import load_base, make_prompts, rollout_options, sample_generate, thought_model

ALLOWED_GAP = 1e-9


def measure(case: Case) -> Measured:
    """Both checks.

    Raises:
        RuntimeError: if one of them fails.
    """
    model = in_fp64(thought_model(case))
    prompts = make_prompts(model.get_base_model(), [5, 11, 2])
    gap = replay_gap(model, prompts, case)
    if not gap <= ALLOWED_GAP:
        raise RuntimeError(f"sampling and replay differ by {gap:.1e}, not {ALLOWED_GAP:.0e}; no figure is reported")
    same = same_greedy_tokens(model, prompts, case)
    if not same:
        raise RuntimeError("greedy tokens differ from those of transformers' generate; no figure is reported")
    return Measured(
        figures=[
            Figure(name="sampling against replay, fp64", value=gap, at_most=ALLOWED_GAP, unit="nats"),
            Figure(name="greedy tokens as generate's", value=float(same), at_least=1),
        ]
    )


def in_fp64(model: Any) -> Any:
    """The model with every step in fp64."""
    model = model.double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                exact = torch.nn.RMSNorm(child.weight.numel(), eps=child.variance_epsilon, dtype=torch.float64)
                exact.weight = child.weight
                setattr(module, name, exact)
    return model


def replay_gap(model: torch.nn.Module, prompts: list[list[int]], case: Case) -> float:
    """Largest difference between sampled and replayed log-probabilities."""
    rollouts = tc.rollout(model, prompts, batch_size=case.batch, **rollout_options(case))
    with torch.no_grad():
        replayed = tc.replay(model, rollouts).logprobs
    gaps = [
        (row[: len(rollout.token_ids)] - rollout.logprobs).abs().max().item()
        for row, rollout in zip(replayed, rollouts, strict=True)
    ]
    return max(gaps)


def same_greedy_tokens(model: torch.nn.Module, prompts: list[list[int]], case: Case) -> bool:
    """Whether the adapter switched off and the full cache give the greedy tokens of a base of its own."""
    options = {**rollout_options(case), "window": None, "temperature": 0.0}
    with model.disable_adapter():
        ours = [rollout.token_ids for rollout in tc.rollout(model, prompts, batch_size=case.batch, **options)]
    base = in_fp64(load_base(case))
    theirs = sample_generate(base, prompts, case.tokens, do_sample=False, temperature=None, top_p=None, top_k=None)
    return ours == theirs.tolist()
