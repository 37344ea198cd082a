"""Budgets by kv head in everything that runs a policy besides `test_policies_and_rules.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients, padded, weighted_loss
from support.models import FAMILIES, tiny_model, use_norms_without_fp32
from support.policies import KINDS, dealt
from support.rollouts import PROMPTS, ragged_rollouts
from thoughtcache.cache.eviction import make_eviction_policy
from thoughtcache.policy.handle import open_policy
from thoughtcache.sampler import decode_step
from thoughtcache.sampler.record_bytes import item_bytes, record_bytes

# Events before thoughts 4, 6, 8, ...; the heads of the last layer are alike.
CACHE: dict[str, Any] = {"window": 6, "evict_fraction": 1 / 3, "eviction_budgets": [[8, 4], [4, 8], [6, 6]]}
LENGTH = 15


def model_of(family: str = "llama", **options: Any) -> Any:
    base = {"num_hidden_layers": 3, "initializer_range": 0.6}
    if family == "smollm3":
        base["no_rope_layers"] = [1, 0, 1]
    return tiny_model(family, base=base, **{**CACHE, **options})


def gradient_of(model: Any, rollouts: list[tc.Rollout], **options: Any) -> dict[str, torch.Tensor]:
    return gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, **options)))


@pytest.mark.parametrize(("eviction", "family", "positions"), dealt([*KINDS, "h2o"], FAMILIES, ("rolling", "absolute")))
def test_families_and_rows_of_unequal_lengths(eviction, family, positions):
    """Padded prompts, rows that end early: one policy, in slots that are refilled too."""
    model = model_of(family, eviction=eviction, positions=positions)
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=LENGTH)
    expected = tc.naive_logprobs(model, rollouts, choose=eviction == "h2o").logprobs
    assert_close(padded(rollouts), expected)
    for options in ({}, {"chunk_tokens": 3, "anchored": False}, {"recompute": False}, {"checkpoint_layers": True}):
        assert_close(tc.replay(model, rollouts, **options).logprobs, expected)
    stop_ids = [row.token_ids[-1] for row in rollouts if row.finish_reason == "stop"][:1]
    refilled = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, stop_ids=stop_ids, batch_size=2)
    assert [row.token_ids for row in refilled] == [row.token_ids for row in rollouts]
    assert_close(padded(refilled), expected)


@pytest.mark.parametrize("eviction", ["snapkv", "r-kv"])
def test_logged_queries_turn_with_the_next_token(eviction):
    """More queries are looked at than come between two events, while larger heads fill up and afterwards."""
    cache = {"window": 9, "evict_fraction": 1 / 9, "eviction_budgets": [[7, 11], [10, 8]], "positions": "rolling"}
    model = tiny_model(base={"initializer_range": 0.6}, eviction=eviction, **cache)
    use_norms_without_fp32(model)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=20, ignore_eos=True)
    assert make_eviction_policy(eviction).num_queries(7, 1) == 3
    assert_close(tc.naive_logprobs(model, rollouts, choose=True).logprobs, padded(rollouts))


@pytest.mark.parametrize("memory_keys", ["content", "rotated"])
@pytest.mark.parametrize("memory_read", ["balanced", "joint", "added"])
@pytest.mark.parametrize("eviction", KINDS)
def test_a_memory_in_attention(eviction, memory_read, memory_keys):
    """Full heads alone write to it, by the positions of their own thoughts; a joint read counts no blank column."""
    options = {"memory_read": memory_read, "memory_keys": memory_keys, "memory_write": "decay"}
    model = model_of(memory="attention", memory_features=4, eviction=eviction, **options)
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=LENGTH)
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts)))
    assert_gradients_match(gradient_of(model, rollouts, checkpoint_layers=True), expected)
    assert_close(padded(rollouts), tc.replay(model, rollouts).logprobs)


def test_eager_attention_is_the_same_policy():
    # transformers' eager attention has an fp32 softmax and breaks on padding in fp64, hence the dtype.
    model = model_of(dtype=torch.float32, eviction="random")
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
    model.base_model.model.set_attn_implementation("eager")
    again = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
    for found in (tc.replay(model, rollouts).logprobs, padded(again)):
        assert_close(found.detach(), padded(rollouts), torch.float32)


@pytest.mark.parametrize("gradient", ["exact", "detached", 2])
@pytest.mark.parametrize(
    ("eviction", "positions"), [("sliding", "rolling"), ("random", "rolling"), ("h2o", "absolute")]
)
def test_gradient_modes_and_records_of_sampling(eviction, positions, gradient):
    model = model_of(eviction=eviction, positions=positions, state_rule="gated")
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=LENGTH, prompts=PROMPTS[1:], record_kv="device")
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts, gradient=gradient)))
    for options in ({"kv_log": "host"}, {"recompute": False}, {"reuse": True, "chunk_tokens": 3}):
        assert_gradients_match(gradient_of(model, rollouts, gradient=gradient, **options), expected)


@pytest.mark.parametrize("positions", ["absolute", "rolling"])
@pytest.mark.parametrize("eviction", [*KINDS, "h2o", "expected-attention"])
def test_generate_is_the_greedy_rollout(eviction, positions):
    """Keys in every layer and states too: `generate` has a cache of its own."""
    model = model_of(eviction=eviction, positions=positions, memory="both", memory_features=4)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, temperature=0.0, ignore_eos=True)
    options = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}
    if eviction == "random":  # rows of `generate` share their seed, and in a rollout prompts have the call's
        rollouts = [tc.rollout(model, [one], max_new_tokens=LENGTH, temperature=0.0)[0] for one in PROMPTS]
    out = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
    assert out.tolist() == [row.token_ids for row in rollouts]


@pytest.mark.parametrize("eviction", KINDS)
def test_bytes_of_records_and_of_slots(eviction):
    """What is foretold is held, and a layer has room for its largest head."""
    model = model_of(eviction=eviction)
    with tc.Engine(model, num_slots=4, max_prompt_tokens=7, max_new_tokens=LENGTH, record_kv="device") as engine:
        for row, prompt in enumerate(PROMPTS):
            engine.add(tc.Request(prompt_ids=prompt, max_new_tokens=LENGTH - row, seed=row, ignore_eos=True))
        while engine.cache.layers[0].keys is None:
            engine.step()
        assert [layer.keys.shape[2] for layer in engine.cache.layers] == [7 + 8, 7 + 8, 7 + 6]
    requests = [
        tc.Request(prompt_ids=one, max_new_tokens=LENGTH - row, ignore_eos=True) for row, one in enumerate(PROMPTS)
    ]
    rollouts = tc.Engine(model, num_slots=2, record_kv="device").run(requests)
    settings = rollouts[0].settings
    items = item_bytes(open_policy(model), settings.cache, settings.filters, keys_values=True)
    lengths = [len(row.prompt_ids) for row in rollouts], [len(row.token_ids) for row in rollouts]
    found = record_bytes(items, *lengths, settings.cache.first_budgets, settings.num_evicted)
    assert found.states == sum(row.states.nbytes for row in rollouts)
    assert found.keys_values == sum(row.keys_values.nbytes for row in rollouts)
    assert found.slots == sum(
        event.slots.nbytes for row in rollouts for event in row.evictions if event.slots is not None
    )
    # The longest has 14 inputs. A head of each of the first layers is full at once, the last layer at the second event.
    assert [event.before_token for event in rollouts[0].evictions] == [4, 6, 8, 10, 12]
    if eviction == "random":
        assert [len(event.slots) for event in rollouts[0].evictions] == [2, 3, 3, 3, 3]
        first, second, third, *_ = (event.slots.ge(0).all(dim=2).tolist() for event in rollouts[0].evictions)
        assert first == [[False, True], [True, False]]
        assert second == [[False, True], [True, False], [True, True]]
        assert third == [[True, True]] * 3


def test_static_shapes(monkeypatch):
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: function)
    for options in ({"eviction": "h2o", "positions": "rolling"}, {"memory": "attention", "memory_features": 4}):
        model = model_of(**options)
        plain, static = (
            tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, batch_size=3, compile=compiled)
            for compiled in (False, True)
        )
        assert [row.token_ids for row in plain] == [row.token_ids for row in static]
        assert_close(padded(static), padded(plain))
