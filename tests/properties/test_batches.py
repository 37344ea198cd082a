"""Rows of a batch never see each other: whatever the neighbours are, the same tokens and log-probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close, padded
from support.models import VOCABULARY, tiny_model
from support.rollouts import PROMPTS, ragged_rollouts

NEW_TOKENS = 15


@pytest.fixture(scope="module", params=["sliding", "random"])
def model(request):
    return tiny_model(state_rule="delta", eviction=request.param)


@pytest.fixture(scope="module")
def rollouts(model):
    torch.manual_seed(0)
    return ragged_rollouts(model, max_new_tokens=NEW_TOKENS)


def same(ours: tc.Rollout, theirs: tc.Rollout) -> None:
    assert ours.token_ids == theirs.token_ids
    assert ours.finish_reason == theirs.finish_reason
    assert [event.before_token for event in ours.evictions] == [event.before_token for event in theirs.evictions]
    assert_close(ours.logprobs, theirs.logprobs)
    assert_close(ours.states, theirs.states)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_of_a_rollout_changes_nothing(model, rollouts, batch_size):
    ends = {rollout.token_ids[-1] for rollout in rollouts if rollout.finish_reason == "stop"}
    split = tc.rollout(model, PROMPTS, max_new_tokens=NEW_TOKENS, batch_size=batch_size, stop_ids=sorted(ends))
    for ours, theirs in zip(split, rollouts, strict=True):
        same(ours, theirs)


def test_a_longer_neighbour_only_adds_padding(model):
    alone = tc.rollout(model, PROMPTS[:2], max_new_tokens=NEW_TOKENS)
    beside = tc.rollout(model, [*PROMPTS[:2], [5] * 30], max_new_tokens=NEW_TOKENS)
    for ours, theirs in zip(alone, beside[:2], strict=True):
        same(ours, theirs)


def test_a_row_goes_on_as_before_when_its_neighbour_ends(model):
    # The stop token ends row 1 early; what follows in row 0 must not change.
    free = tc.rollout(model, PROMPTS[:2], max_new_tokens=NEW_TOKENS)
    stop = next(token for token in free[1].token_ids if token not in free[0].token_ids)
    stopped = tc.rollout(model, PROMPTS[:2], max_new_tokens=NEW_TOKENS, stop_ids=[stop])
    assert len(stopped[1].token_ids) < NEW_TOKENS
    same(stopped[0], free[0])


def test_all_rows_ended_ends_the_rollout(model):
    every_token = list(range(VOCABULARY))
    for rollout in tc.rollout(model, PROMPTS, max_new_tokens=NEW_TOKENS, stop_ids=every_token):
        assert len(rollout.token_ids) == 1
        assert rollout.finish_reason == "stop"
        assert rollout.evictions == ()


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(len(PROMPTS))), kept=st.integers(min_value=1, max_value=len(PROMPTS)))
def test_replay_of_permuted_and_dropped_rows(model, rollouts, order, kept):
    chosen = list(order)[:kept]
    longest = max(len(rollouts[row].token_ids) for row in chosen)
    with torch.no_grad():
        whole = tc.replay(model, rollouts)
        part = tc.replay(model, [rollouts[row] for row in chosen])
    assert part.logprobs.shape == (kept, longest)
    assert_close(part.logprobs, whole.logprobs[chosen, :longest])
    assert_close(part.entropies, whole.entropies[chosen, :longest])
    assert torch.equal(part.mask, whole.mask[chosen, :longest])


def test_same_seed_same_tokens(model):
    once = tc.rollout(model, PROMPTS, max_new_tokens=8, seed=5)
    again = tc.rollout(model, PROMPTS, max_new_tokens=8, seed=5)
    other = tc.rollout(model, PROMPTS, max_new_tokens=8, seed=6)
    assert [rollout.token_ids for rollout in once] == [rollout.token_ids for rollout in again]
    assert [rollout.token_ids for rollout in once] != [rollout.token_ids for rollout in other]


def test_equal_prompts_draw_different_tokens(model):
    same_prompt = tc.rollout(model, [[1, 2, 3]] * 4, max_new_tokens=8)
    assert len({tuple(rollout.token_ids) for rollout in same_prompt}) == 4


def test_a_longer_rollout_extends_a_shorter_one(model):
    if model.peft_config["default"].eviction == "sliding":
        short = tc.rollout(model, PROMPTS, max_new_tokens=6)
        long = tc.rollout(model, PROMPTS, max_new_tokens=NEW_TOKENS)
        assert [r.token_ids for r in short] == [r.token_ids[:6] for r in long]


def test_the_global_random_state_plays_no_part(model):
    torch.manual_seed(1)
    first = tc.rollout(model, PROMPTS, max_new_tokens=8)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = tc.rollout(model, PROMPTS, max_new_tokens=8)
    assert torch.equal(before, torch.get_rng_state())
    assert_close(padded(first), padded(second))


def test_tokens_follow_the_scored_distribution():
    # 2000 draws of the first token against its recorded probability; 5 standard deviations.
    model = tiny_model(dtype=torch.float32)
    rollouts = tc.rollout(model, [[1, 2, 3]] * 2000, max_new_tokens=1, temperature=0.8)
    counts = torch.bincount(torch.tensor([r.token_ids[0] for r in rollouts]), minlength=VOCABULARY) / 2000
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([[1, 2, 3]])).logits[0, -1] / 0.8).softmax(-1)
    assert ((counts - expected).abs() <= 5 * (expected * (1 - expected) / 2000).sqrt() + 1e-3).all()
