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


def cache_totals(traces: Sequence[Trace]) -> Float[Tensor, " 5"]:
    """(traces, evictions, number of states, sum of their norms, largest norm); all but the last add up.

    The norm is Frobenius, over all numbers of each state, whatever its shape, after each eviction in each layer. The
    evictions of a chain are those of all of its links.
    """
    records = links_of(traces)
    norms = [
        record.states.flatten(0, 1).flatten(1).norm(dim=1).cpu() for record in records if record.states is not None
    ]
    joined = torch.cat(norms).double() if norms else torch.zeros(0, dtype=torch.float64)
    largest = joined.max().item() if joined.numel() else 0.0
    evictions = sum(len(record.evictions) for record in records)
    return torch.tensor([len(traces), evictions, joined.numel(), joined.sum().item(), largest])


def cache_metrics(totals: Float[Tensor, "P 5"]) -> dict[str, float]:
    """Metrics from the totals of P processes; the state's are absent where no state was recorded."""
    traces, evictions, states, norm_sum, _ = totals.sum(dim=0).tolist()
    metrics = {"cache/evictions": evictions / traces}
    if states:
        metrics["state/norm_mean"] = norm_sum / states
        metrics["state/norm_max"] = totals[:, 4].max().item()
    return metrics
