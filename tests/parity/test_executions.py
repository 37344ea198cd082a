"""Naive, rollout and replay are one policy: the same log-probabilities and states, over many evictions."""

from __future__ import annotations

import pytest
import torch

import thoughtcache as tc
from support.compare import TOLERANCE, assert_close, max_difference, padded
from support.models import CONTROLS, FAMILIES, tiny_model
from support.policies import crossed
from support.rollouts import PROMPTS, ragged_rollouts
from thoughtcache.cache.eviction import EVICTION_POLICIES
from thoughtcache.state import STATE_RULES

NEW_TOKENS = 21  # 20 inputs, window 5, one token leaves at a time: 15 evictions
CASES = {
    **CONTROLS,
    "global state": {},
    "window of one token": {"window": 1},
    "two tokens leave at once": {"window": 6},
    "all tokens leave at once": {"window": 4, "evict_fraction": 1.0},
    "square state": {"r": 5},
    "fewer global tokens than ranks": {"r": 5, "num_global_tokens": 3},
    "only some linears": {"target_modules": ["q_proj", "down_proj"]},
}


def check_all_executions(model, rollouts, dtype=torch.float64):
    """rollout == naive == replay, with recorded states and with recomputed ones."""
    recorded = padded(rollouts)
    with torch.no_grad():
        naive = tc.naive_logprobs(model, rollouts)
        anchored = tc.replay(model, rollouts)
        recomputed = tc.replay(model, rollouts, anchored=False)
    assert_close(naive.logprobs, recorded, dtype)
    for out in (anchored, recomputed):
        assert_close(out.logprobs, recorded, dtype)
        assert_close(out.entropies, naive.entropies, dtype)
        assert torch.equal(out.mask, naive.mask)
    return naive


@pytest.mark.parametrize("family", FAMILIES)
def test_model_families(family):
    model = tiny_model(family)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS)
    assert max(len(rollout.evictions) for rollout in rollouts) == 15
    check_all_executions(model, rollouts)


@pytest.mark.parametrize(("eviction", "family"), crossed(FAMILIES))
def test_rolling_positions(family, eviction):
    model = tiny_model(family, eviction=eviction, positions="rolling", evict_fraction=0.4)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS)
    assert max(len(rollout.evictions) for rollout in rollouts) == 8
    check_all_executions(model, rollouts)


@pytest.mark.parametrize("control", CASES)
def test_controls(control):
    model = tiny_model(**CASES[control])
    check_all_executions(model, ragged_rollouts(model, max_new_tokens=NEW_TOKENS))


@pytest.mark.parametrize("new_tokens", [1, 2, 4, 5, 6, 7])
def test_lengths_around_the_window(new_tokens):
    # T = 1, then W-1, W, W+1 and W+2 for W = 5: the last token is never an input, so T = 6 has no eviction yet.
    model = tiny_model(window=5)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=new_tokens, ignore_eos=True)
    assert [len(rollout.evictions) for rollout in rollouts] == [max(0, new_tokens - 6)] * len(PROMPTS)
    check_all_executions(model, rollouts)


def test_eager_attention_is_the_same_policy():
    # transformers' eager attention has an fp32 softmax and breaks on padding in fp64, hence the dtype.
    model = tiny_model(dtype=torch.float32, base={"attn_implementation": "eager"})
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS)
    model.base_model.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        fused = tc.replay(model, rollouts).logprobs
        model.base_model.model.set_attn_implementation("eager")
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts), torch.float32)
    assert_close(fused, padded(rollouts), torch.float32)


def test_equal_prompts_take_the_path_without_a_mask():
    model = tiny_model()
    rollouts = tc.rollout(model, [[1, 2, 3]] * 3, max_new_tokens=NEW_TOKENS, ignore_eos=True, seed=3)
    assert len({tuple(rollout.token_ids) for rollout in rollouts}) == 3
    check_all_executions(model, rollouts)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.6])
def test_temperatures(temperature):
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=12, temperature=temperature, ignore_eos=True)
    check_all_executions(model, rollouts)
    assert rollouts[0].settings.scoring_temperature == (temperature or 1.0)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_recorded_states_keep_fp32_close(family):
    model = tiny_model(family, dtype=torch.float32)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS)
    with torch.no_grad():
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts), torch.float32)


def test_recorded_states_keep_bf16_close():
    model = tiny_model(dtype=torch.bfloat16)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS)
    assert rollouts[0].states.dtype == torch.float32
    assert rollouts[0].logprobs.dtype == torch.float32
    with torch.no_grad():
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts), torch.bfloat16)


@pytest.mark.parametrize("rule", sorted(STATE_RULES))
def test_the_naive_form_runs_in_bf16(rule):
    # Up to one eviction: without recorded states the rounding of one reaches the next.
    model = tiny_model(dtype=torch.bfloat16, state_rule=rule)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=7, ignore_eos=True)
    assert [len(rollout.evictions) for rollout in rollouts] == [1] * len(PROMPTS)
    with torch.no_grad():
        naive = tc.naive_logprobs(model, rollouts)
    assert naive.logprobs.dtype == torch.float32
    assert_close(naive.logprobs, padded(rollouts), torch.bfloat16)


def test_fp32_policy_is_the_fp64_policy():
    # The same weights in both precisions: what is left is rounding, not another algorithm.
    exact, rounded = tiny_model().float().double(), tiny_model().float()
    rollouts = tc.rollout(exact, PROMPTS, max_new_tokens=10, ignore_eos=True)
    with torch.no_grad():
        difference = max_difference(tc.replay(rounded, rollouts, anchored=False).logprobs, padded(rollouts))
    assert difference < 10 * TOLERANCE[torch.float32]  # five evictions with recomputed states


def test_cache_and_state_matter_to_these_models():
    # Without this, every comparison above could pass on models that never read their cache or state.
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    with torch.no_grad():
        bounded = tc.replay(model, rollouts).logprobs
        full = tc.replay(model, rollouts, full_cache=True).logprobs
        model.peft_config["default"].absorb = False
        frozen_state = tc.replay(model, rollouts).logprobs
    assert torch.equal(bounded[:, :6], full[:, :6])
    assert torch.equal(bounded[:, :6], frozen_state[:, :6])
    assert (bounded[:, 6:] - full[:, 6:]).abs().mean() > 0.05
    assert (bounded[:, 6:] - frozen_state[:, 6:]).abs().mean() > 0.05


def test_recorded_states_are_the_recomputed_ones_and_are_used():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=9, ignore_eos=True)
    record = rollouts[0]
    assert record.states.shape == (3, 2, 5, 3)
    other = [tc.Rollout(**{**fields(r), "states": r.states.flip(0)}) for r in rollouts]
    with torch.no_grad():
        assert max_difference(tc.replay(model, other).logprobs, padded(rollouts)) > 1e-3
        assert_close(tc.replay(model, other, anchored=False).logprobs, padded(rollouts))


def fields(rollout: tc.Rollout) -> dict:
    """The fields of a record, by name."""
    return {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}


@pytest.mark.parametrize("eviction", sorted(EVICTION_POLICIES))
def test_records_of_a_rollout(eviction):
    model = tiny_model(window=4, evict_fraction=0.5, eviction=eviction)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS)
    for rollout in rollouts:
        inputs = len(rollout.token_ids) - 1
        assert [event.before_token for event in rollout.evictions] == list(range(4, inputs, 2))
        assert rollout.states.shape == (len(rollout.evictions), 2, 5, 3)
        assert len(rollout.logprobs) == len(rollout.token_ids)
        for event in rollout.evictions:
            assert event.num_tokens == 2
            if eviction == "sliding":
                assert event.slots is None
            else:
                assert event.slots.shape == (2, 2, 2)
                assert (event.slots.diff(dim=-1) > 0).all()
                assert event.slots.min() >= 0
                assert event.slots.max() < 4
    assert all(rollout.prompt_ids == prompt for rollout, prompt in zip(rollouts, PROMPTS, strict=True))


def test_random_eviction_differs_between_layers_heads_and_events():
    rollout = tc.rollout(tiny_model(eviction="random"), [[1, 2]], max_new_tokens=NEW_TOKENS, ignore_eos=True)[0]
    slots = torch.stack([event.slots for event in rollout.evictions])  # [N, L, H, 1]
    assert slots.unique().numel() > 2
    assert not torch.equal(slots[:, 0], slots[:, 1])
    assert not torch.equal(slots[:, :, 0], slots[:, :, 1])


def test_declared_end_of_sequence_tokens_stop_a_row():
    model = tiny_model()
    free = tc.rollout(model, PROMPTS, max_new_tokens=12)
    assert {rollout.finish_reason for rollout in free} == {"length"}
    stops = [free[0].token_ids[4], free[1].token_ids[7]]
    model.base_model.model.generation_config.eos_token_id = stops
    stopped = tc.rollout(model, PROMPTS, max_new_tokens=12)
    for short, long in zip(stopped, free, strict=True):
        ends = [i for i, token in enumerate(long.token_ids) if token in stops]
        length = ends[0] + 1 if ends else 12
        assert short.token_ids == long.token_ids[:length]
        assert short.finish_reason == ("stop" if ends else "length")
    assert tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)[0].token_ids == free[0].token_ids
