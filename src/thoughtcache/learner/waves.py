"""Replays links that go on from the cache of the one before: all first links, then all second ones, in waves.

Each wave is one batch, run as every replay is (`reverse.py`, or plain autograd). A wave hands over what its rows hold
at their ends (`exits.py`), a fold makes the first columns and states of the next wave of it, and autograd carries the
gradients of both from wave to wave. So the gradient is exact, and memory stays flat: what grows with the length are the
keys and values of each wave's log, and of what a fold absorbs, which wait on the model's device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.learner.chunk import Boundary, batch_chunks
from thoughtcache.learner.exits import Exit, entry_of_batch, fold_exit
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.plain import plain_replay
from thoughtcache.learner.reverse import reverse_replay
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.continuations import check_exact, rows_of_chains
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.limits import check_rollout_positions
from thoughtcache.policy.scores import running_autocast, token_scores
from thoughtcache.records import Rollout, TokenLogProbs


def score_waves(
    model: nn.Module, policy: PolicyHandle, rollouts: Sequence[Rollout], options: ReplayOptions
) -> TokenLogProbs:
    """Scores of rollouts and links, one row each, in their order; see `score_rollouts`.

    Args:
        model: the adapted model, wrapped or not.
        policy: its parts.
        rollouts: a link that continues stands behind the one that it continues.
        options: see `replay`.

    Raises:
        ValueError: for options that are not defined for such links.
    """
    check_exact(options.gradient)
    if options.full_cache or options.reuse:
        raise ValueError(
            "links that go on from the cache of the one before replay what was sampled, by forward passes; they go "
            "with full_cache=False and reuse=False"
        )
    chains = rows_of_chains(rollouts)
    check_rollout_positions(rollouts, rollouts[0].settings, policy.reach)
    autocast = running_autocast(policy.device.type)

    def request(tuner: ThoughtModel) -> tuple[Tensor, ...]:
        with torch.autocast(**autocast):
            return _run_waves(policy, chains, rollouts, options)

    logprobs, entropies = model(thought_request=request)
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts], device=logprobs.device)
    mask = torch.arange(logprobs.shape[1], device=logprobs.device) < lengths[:, None]
    return TokenLogProbs(logprobs=logprobs, mask=mask, entropies=entropies)


def _run_waves(
    policy: PolicyHandle, chains: list[list[int]], rollouts: Sequence[Rollout], options: ReplayOptions
) -> tuple[Tensor, Tensor]:
    """[rows, T] log-probabilities and entropies of all rollouts, zero behind their ends."""
    logprobs: dict[int, Tensor] = {}
    entropies: dict[int, Tensor] = {}
    begun: dict[int, Exit] = {}
    run = reverse_replay if options.recompute and torch.is_grad_enabled() else plain_replay
    for wave in range(max(map(len, chains))):
        rows = [chain[wave] for chain in chains if len(chain) > wave]
        rows.sort(key=lambda row: -len(rollouts[row].token_ids))
        batch = batch_rollouts([rollouts[row] for row in rows], policy.device, may_continue=True)
        entry = entry_of_batch(batch, [begun.pop(row) for row in rows]) if wave else Boundary()
        chunks = batch_chunks(batch, options.chunk_tokens, given=0 if entry.past is None else entry.past[0][0].shape[2])
        ends = {chain[wave]: chain[wave + 1] for chain in chains if len(chain) > wave + 1}
        over = [place for place, row in enumerate(rows) if row in ends]
        score = token_scores(policy, batch.token_ids, batch.settings.scoring_temperature)
        found, exits = run(policy, batch, chunks, score, options, entry, over)
        for place, row in enumerate(rows):
            length = len(rollouts[row].token_ids)
            logprobs[row], entropies[row] = found[0][place, :length], found[1][place, :length]
        for place, end in zip(over, exits, strict=True):
            link, following = rollouts[rows[place]], ends[rows[place]]
            continues = rollouts[following].continues
            assert continues is not None, "rows_of_chains has them behind one another"
            begun[following] = fold_exit(policy.tuner.memory(), link, continues, end, anchored=options.anchored)
    numbers = range(len(rollouts))
    return (
        pad_sequence([logprobs[row] for row in numbers], batch_first=True),
        pad_sequence([entropies[row] for row in numbers], batch_first=True),
    )
