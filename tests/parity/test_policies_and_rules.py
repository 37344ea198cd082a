"""Every eviction policy with everything that learns from what leaves, at absolute and rolling positions.

A policy that is listed in `EVICTION_POLICIES`, a rule in `STATE_RULES` or a write in `WRITE_RULES` is in this product.
Budgets that differ by layer, those of `ALLOCATIONS` too, meet every policy; every rule meets them with the two kinds of
records.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients, padded, weighted_loss
from support.models import tiny_model, use_norms_without_fp32
from support.policies import KINDS, SCORED, dealt
from support.rollouts import PROMPTS
from thoughtcache.cache.budgets import ALLOCATIONS
from thoughtcache.cache.eviction import EVICTION_POLICIES
from thoughtcache.state import STATE_RULES
from thoughtcache.state.attention.writes import WRITE_RULES

RULES: dict[str, dict[str, Any]] = {
    **{rule: {"state_rule": rule} for rule in sorted(STATE_RULES)},
    **{
        f"attention, {write}": {"memory": "attention", "memory_features": 4, "memory_write": write}
        for write in sorted(WRITE_RULES)
    },
    "both": {"memory": "both", "memory_features": 4},
}
LENGTH = 13  # window 8, of which 2 leave: two evictions, before the second of which windows have gaps
PRODUCT = list(product(sorted(EVICTION_POLICIES), RULES, ("absolute", "rolling")))
BUDGETS: dict[str, Any] = {
    "6, 10": [6, 10],
    "10, 6": [10, 6],
    **{name: name for name in sorted(ALLOCATIONS)},
    "4 8, 8 12": [[4, 8], [8, 12]],  # by kv head, as the next one
    "12 6, 8 6": [[12, 6], [8, 6]],
}
UNEVEN_LENGTH = 17  # the layer of the larger budget, at most 13, evicts twice
UNEVEN = [
    *dealt(KINDS, list(RULES), ("absolute", "rolling"), list(BUDGETS)),
    *(
        (eviction, rule, positions, budgets)
        for eviction, budgets, positions, rule in dealt(
            sorted({*EVICTION_POLICIES} - {*KINDS}), list(BUDGETS), ("rolling", "absolute"), list(RULES)
        )
    ),
]


@pytest.mark.parametrize(("eviction", "rule", "positions"), PRODUCT)
def test_one_policy(eviction, rule, positions):
    """Values, choices and gradients are those of the naive form; neighbours change nothing."""
    rollouts = _one_policy(LENGTH, eviction, rule, positions=positions)
    assert [len(rollout.evictions) for rollout in rollouts] == [2, 2]


@pytest.mark.parametrize(("eviction", "rule", "positions", "budgets"), UNEVEN)
def test_one_policy_with_uneven_budgets(eviction, rule, positions, budgets):
    """The same where layers, or the heads of a layer, hold different numbers of thoughts."""
    rollouts = _one_policy(UNEVEN_LENGTH, eviction, rule, positions=positions, eviction_budgets=BUDGETS[budgets])
    settings = rollouts[0].settings
    assert settings.budgets is not None
    sizes = settings.head_budgets or tuple((size, size) for size in settings.budgets)
    assert max(map(max, sizes)) + 2 < UNEVEN_LENGTH - 1
    first = min(map(min, sizes))
    assert [event.before_token for event in rollouts[0].evictions] == list(range(first, UNEVEN_LENGTH - 1, 2))
    for event in rollouts[0].evictions:
        full = [[size <= event.before_token for size in heads] for heads in sizes if min(heads) <= event.before_token]
        assert event.slots is None or event.slots.shape == (len(full), 2, 2)
        assert event.slots is None or (event.slots >= 0).all(dim=2).tolist() == full


def _one_policy(length: int, eviction: str, rule: str, **cache: Any) -> list[tc.Rollout]:
    options = {"window": 8, "evict_fraction": 0.25, "eviction": eviction, **cache, **RULES[rule]}
    model = tiny_model(base={"initializer_range": 0.6}, **options)
    use_norms_without_fp32(model)
    prompts, seeds = [PROMPTS[1], PROMPTS[3]], [4, 5]
    rollouts = tc.rollout(model, prompts, max_new_tokens=length, seed=seeds, ignore_eos=True)
    assert max(rollout.states.abs().max().item() for rollout in rollouts if rollout.states is not None) > 0.01

    chooses = eviction in SCORED
    expected = gradients(model, lambda: _compared(tc.naive_logprobs(model, rollouts, choose=chooses), rollouts))
    for replayed in ({}, {"anchored": False, "chunk_tokens": 3}):
        found = gradients(model, lambda o=replayed: _compared(tc.replay(model, rollouts, **o), rollouts))
        assert_gradients_match(found, expected)

    (alone,) = tc.rollout(model, prompts[1:], max_new_tokens=length, seed=seeds[1:], ignore_eos=True)
    assert alone.token_ids == rollouts[1].token_ids
    assert_close(alone.logprobs, rollouts[1].logprobs)
    for event, other in zip(alone.evictions, rollouts[1].evictions, strict=True):
        assert (event.slots is None) == (other.slots is None) == (eviction == "sliding")
        assert event.slots is None or torch.equal(event.slots, other.slots)
        assert event.before_token == other.before_token
    return rollouts


def _compared(out: tc.TokenLogProbs, rollouts: list[tc.Rollout]) -> torch.Tensor:
    """A loss of what agrees with the records."""
    assert_close(out.logprobs.detach(), padded(rollouts))
    return weighted_loss(out)
