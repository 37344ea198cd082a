"""Rows of a replay in any order of their lengths: each has its own anchors, slots and keys, and its own gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients
from support.models import tiny_model
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.replay import run_replay
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.token_logprobs import token_logprobs

PROMPTS = [[3, 1, 4, 1], [6, 5], [9], [2, 7, 1]]
LENGTHS = (3, 13, 7, 10)
"""The first row has no eviction, the last one is not the longest."""


def in_this_order(model, rollouts: list[tc.Rollout], options: ReplayOptions) -> Tensor:
    """[B, T] log-probabilities; `tc.replay` would sort the rows by their lengths."""
    policy = open_policy(model)
    batch = batch_rollouts(rollouts, policy.device)

    def score(hidden: Tensor, start: int, stop: int, known: object) -> tuple[Tensor, ...]:
        return token_logprobs(hidden, batch.token_ids[: hidden.shape[0], start:stop], policy.head, 1.0)[:1]

    (logprobs,) = run_replay(model, batch, score, options)
    return logprobs.where(batch.mask, 0.0)


@pytest.fixture(scope="module", params=["sliding", "random"])
def sampled(request):
    """A model, and rollouts whose recorded states are not those that it would compute again."""
    model = tiny_model(window=3, eviction=request.param)
    rollouts = [
        tc.rollout(model, [prompt], max_new_tokens=length, seed=row, ignore_eos=True)[0]
        for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True))
    ]
    moved = [r if r.states is None else replace(r, states=r.states * (1 + 0.1 * row)) for row, r in enumerate(rollouts)]
    assert [len(r.evictions) for r in rollouts] == [0, 9, 3, 6]
    return model, moved


@pytest.mark.parametrize("chunk_tokens", [2, None])
@pytest.mark.parametrize("recompute", [True, False])
def test_rows_are_those_that_they_would_be_alone(sampled, recompute, chunk_tokens):
    model, rollouts = sampled
    options = ReplayOptions(recompute=recompute, chunk_tokens=chunk_tokens)
    weights = torch.linspace(-1.0, 1.7, len(rollouts) * max(LENGTHS), dtype=torch.float64).view(len(rollouts), -1)

    def alone() -> Tensor:
        rows = [tc.replay(model, [r], chunk_tokens=None, recompute=False).logprobs[0] for r in rollouts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    with torch.no_grad():
        assert_close(in_this_order(model, rollouts, options), alone())
    assert_gradients_match(
        gradients(model, lambda: (weights * in_this_order(model, rollouts, options)).sum()),
        gradients(model, lambda: (weights * alone()).sum()),
    )
