"""Log-probabilities of chains: their links are replayed as one batch of rollouts and joined again.

Boundaries cost the replay nothing new: carried tokens are part of a prompt, and no gradient passes a boundary, since
tokens carry none. So the gradient is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from thoughtcache.chains.chain import Chain, Trace, links_of
from thoughtcache.learner.replay import replay
from thoughtcache.policy.modes import GradientMode
from thoughtcache.policy.naive import naive_logprobs
from thoughtcache.records import Rollout, TokenLogProbs


def replay_chains(model: nn.Module, chains: Sequence[Trace], **options: Any) -> TokenLogProbs:
    """Log-probabilities of all sampled tokens of chains, right-padded to the longest trace; differentiable.

    Args:
        model: the adapted model.
        chains: chains, or rollouts, sampled under one set of cache settings.
        **options: those of `replay`.

    Returns:
        One row per chain, in order; `T` is the length of the longest trace.

    Raises:
        ValueError: as `replay`.
    """
    return join_links(replay(model, links_of(chains), **options), chains)


def naive_chain_logprobs(
    model: nn.Module, chains: Sequence[Chain], *, gradient: GradientMode = "exact"
) -> TokenLogProbs:
    """The same by the definition: every link is scored behind the context that the definition gives it.

    The recorded prompts of the links are not read, only what was sampled and where the boundaries lie.

    Args:
        model: the adapted model.
        chains: chains of any settings.
        gradient: see `naive_logprobs`.

    Returns:
        One row per chain, as `replay_chains` gives them.

    Raises:
        ValueError: as `naive_logprobs`.
    """
    links: list[Rollout] = []
    for chain in chains:
        if chain.thinking.keeps_written:
            links += chain.links  # `fold` in policy/naive.py says what stays; of a prompt only its end is read
            continue
        for link, start in zip(chain.links, (0, *chain.boundaries), strict=True):
            context = chain.thinking.naive_context(chain.prompt_ids, chain.token_ids, chain.boundaries, start)
            links.append(replace(link, prompt_ids=context))
    return join_links(naive_logprobs(model, links, gradient=gradient), chains)


def join_links(scores: TokenLogProbs, traces: Sequence[Trace]) -> TokenLogProbs:
    """Rows of links as rows of whole traces.

    Args:
        scores: one row per link, in the order of `links_of`.
        traces: the traces.
    """
    counts = [len(links_of([trace])) for trace in traces]
    if max(counts) == 1:
        return scores
    lengths = [len(link.token_ids) for link in links_of(traces)]

    def join(rows: Tensor) -> Tensor:
        real = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        whole, start = [], 0
        for count in counts:
            whole.append(torch.cat(real[start : start + count]))
            start += count
        return pad_sequence(whole, batch_first=True)

    return TokenLogProbs(logprobs=join(scores.logprobs), mask=join(scores.mask), entropies=join(scores.entropies))
