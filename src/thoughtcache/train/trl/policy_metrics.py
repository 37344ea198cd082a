"""Numbers that say whether the scored policy is the sampled one, and what the cache and the state did.

Pure functions of tensors; the trainer gathers over processes and logs. Axes as in `records.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.chains.chain import Trace, links_of

TINY = 1e-30


def sampled_log_ratio(replayed: Float[Tensor, "B T"], rollouts: Sequence[Trace]) -> Float[Tensor, " N"]:
    """Replayed minus sampled log-probability of every real thought token, rows joined; padding is left out.

    Args:
        replayed: right-padded log-probabilities.
        rollouts: the B records, whose lengths say what is real.
    """
    rows = [
        replayed[row, : len(record.token_ids)].detach() - record.logprobs.to(replayed.device)
        for row, record in enumerate(rollouts)
    ]
    return torch.cat(rows)


def gap_metrics(log_ratio: Float[Tensor, " N"], epsilon_low: float, epsilon_high: float) -> dict[str, float]:
    """Distance between two executions of one policy; NaN entries (padding between processes) are left out.

    Returns:
        Mean, 99th percentile (smallest value that is >= 99 % of them) and maximum of |log ratio| in nats, and the
        share of tokens whose ratio a clip of [1 - epsilon_low, 1 + epsilon_high] would cut.
    """
    values = log_ratio[~log_ratio.isnan()]
    gap = values.abs()
    ratio = values.exp()
    outside = (ratio < 1 - epsilon_low) | (ratio > 1 + epsilon_high)
    return {
        "policy/gap_mean": gap.mean().item(),
        "policy/gap_p99": gap.kthvalue(math.ceil(0.99 * gap.numel())).values.item(),
        "policy/gap_max": gap.max().item(),
        "policy/gap_outside_clip": outside.to(gap.dtype).mean().item(),
    }


NUM_TOTALS = 7


def cache_totals(traces: Sequence[Trace]) -> Float[Tensor, " 7"]:
    """(traces, evictions, states, sum of their norms, largest norm, pairs, sum of their changes).

    All but the largest norm add up. The norm is Frobenius, over all numbers of each state, whatever its shape, after
    each eviction in each layer. A pair is the first and the last state of a layer, where there are several; its change
    is the norm of their difference over the larger of their norms. The evictions of a chain are those of all of its
    links.
    """
    records = links_of(traces)
    rows = [record.states.flatten(2).double().cpu() for record in records if record.states is not None]
    norms = _joined([states.norm(dim=2) for states in rows])
    changes = _joined([_change(states[0], states[-1]) for states in rows if len(states) > 1])
    largest = norms.max().item() if norms.numel() else 0.0
    evictions = sum(len(record.evictions) for record in records)
    found = (len(traces), evictions, norms.numel(), norms.sum().item(), largest, changes.numel(), changes.sum().item())
    return torch.tensor(found)


def _change(first: Float[Tensor, "L size"], last: Float[Tensor, "L size"]) -> Float[Tensor, " L"]:
    """Relative change of each layer; 0 where both are zero."""
    larger = torch.maximum(first.norm(dim=1), last.norm(dim=1)).clamp_min(TINY)
    change: Tensor = (last - first).norm(dim=1) / larger
    return change


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in values]) if values else torch.zeros(0, dtype=torch.float64)


def cache_metrics(totals: Float[Tensor, "P 7"]) -> dict[str, float]:
    """Metrics from the totals of P processes; the state's are absent where no state was recorded."""
    traces, evictions, states, norm_sum, _, pairs, changes = totals.sum(dim=0).tolist()
    metrics = {"cache/evictions": evictions / traces}
    if states:
        metrics["state/norm_mean"] = norm_sum / states
        metrics["state/norm_max"] = totals[:, 4].max().item()
    if pairs:
        metrics["state/change"] = changes / pairs
    return metrics
