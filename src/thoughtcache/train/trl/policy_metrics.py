"""Numbers that say whether the scored policy is the sampled one, and what the cache and the state did.

Pure functions of tensors; the trainer gathers over processes and logs. Axes as in `records.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.budgets import layer_budgets
from thoughtcache.chains.chain import Trace, links_of
from thoughtcache.records import Rollout

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
    each eviction, or fold, in each layer. A pair is the state of a layer after the first and after the last of its own
    evictions, where there are several; its change is the norm of their difference over the larger of their norms. A
    chain whose links go on from each other has one state all along.
    """
    found = torch.zeros(NUM_TOTALS, dtype=torch.float64)
    found[0] = len(traces)
    for links in _sequences(traces):
        found[1] += sum(len(link.evictions) for link in links)
        states = _states(links)
        if not states:
            continue
        norms = torch.stack([state.flatten(1).norm(dim=1) for state in states]).double()
        found[2] += norms.numel()
        found[3] += norms.sum()
        found[4] = max(found[4], norms.max())
        budgets = layer_budgets(links[0].settings.cache)
        for layer in range(norms.shape[1]):
            first = 0 if budgets is None else budgets.num_late(layer)
            if first < len(states) - 1:
                found[5] += 1
                difference = (states[-1][layer] - states[first][layer]).norm()
                found[6] += difference / norms[[first, -1], layer].max().clamp_min(TINY)
    return found.float()


def _sequences(traces: Sequence[Trace]) -> list[list[Rollout]]:
    """Links that share one cache and one state, in order; a link that begins anew stands in a list of its own."""
    found: list[list[Rollout]] = []
    for link in links_of(traces):
        if link.continues is None:
            found.append([])
        found[-1].append(link)
    return found


def _states(links: Sequence[Rollout]) -> list[Float[Tensor, "L *state"]]:
    """The recorded states of one sequence in order."""
    found: list[Tensor] = []
    for link in links:
        if link.continues is not None and link.continues.state is not None:
            found.append(link.continues.state)
        found += [] if link.states is None else list(link.states)
    return found


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
