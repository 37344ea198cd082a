"""Budgets by layer and by kv head in everything that runs a policy besides `test_policies_and_rules.py`."""

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
from thoughtcache.learner.chunk import batch_chunks
from thoughtcache.learner.kv_log import KVLog
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import open_policy
from thoughtcache.sampler import decode_step
from thoughtcache.sampler.record_bytes import item_bytes, record_bytes

# Events before thoughts 4, 6, 8, ...: the middle layer has the smallest budget; the heads of the last one are alike.
BUDGETS: dict[str, Any] = {"layer": [8, 4, 6], "head": [[8, 4], [4, 8], [6, 6]]}
CACHE: dict[str, Any] = {"window": 6, "evict_fraction": 1 / 3}
LENGTH = 15

by_both = pytest.mark.parametrize("by", sorted(BUDGETS))


def model_of(by: str, family: str = "llama", **options: Any) -> Any:
    base = {"num_hidden_layers": 3, "initializer_range": 0.6}
    if family == "smollm3":
        base["no_rope_layers"] = [1, 0, 1]
    return tiny_model(family, base=base, **{"eviction_budgets": BUDGETS[by], **CACHE, **options})


def gradient_of(model: Any, rollouts: list[tc.Rollout], **options: Any) -> dict[str, torch.Tensor]:
    return gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, **options)))


@by_both
@pytest.mark.parametrize(("eviction", "family", "positions"), dealt([*KINDS, "h2o"], FAMILIES, ("rolling", "absolute")))
def test_families_and_rows_of_unequal_lengths(eviction, family, positions, by):
    """Padded prompts, rows that end early: one policy, in slots that are refilled too."""
    model = model_of(by, family, eviction=eviction, positions=positions)
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


@by_both
@pytest.mark.parametrize("eviction", ["snapkv", "r-kv"])
def test_logged_queries_turn_with_the_next_token(eviction, by):
    """More queries are looked at than come between two events, while the larger ones fill up and afterwards."""
    cache = {"window": 9, "evict_fraction": 1 / 9, "positions": "rolling"}
    budgets: Any = {"layer": [7, 11], "head": [[7, 11], [10, 8]]}[by]
    model = tiny_model(base={"initializer_range": 0.6}, eviction=eviction, eviction_budgets=budgets, **cache)
    use_norms_without_fp32(model)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=20, ignore_eos=True)
    assert make_eviction_policy(eviction).num_queries(7, 1) == 3
    assert_close(tc.naive_logprobs(model, rollouts, choose=True).logprobs, padded(rollouts))


@by_both
@pytest.mark.parametrize("memory_keys", ["content", "rotated"])
@pytest.mark.parametrize("memory_read", ["balanced", "joint", "added"])
@pytest.mark.parametrize("eviction", KINDS)
def test_a_memory_in_attention(eviction, memory_read, memory_keys, by):
    """A joint read is told the window's share, by a key more in front of the layer's own, and counts no blank column.

    Full heads alone write to a memory, by the positions of their own thoughts.
    """
    options = {"memory_read": memory_read, "memory_keys": memory_keys, "memory_write": "decay"}
    model = model_of(by, memory="attention", memory_features=4, eviction=eviction, **options)
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=LENGTH)
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts)))
    assert_gradients_match(gradient_of(model, rollouts, checkpoint_layers=True), expected)
    assert_close(padded(rollouts), tc.replay(model, rollouts).logprobs)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("eviction", KINDS)
def test_layers_whose_largest_heads_are_alike(eviction, compiled, monkeypatch):
    """All layers have as many columns then, and masks by head all the same."""
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: function)
    model = model_of("head", eviction=eviction, eviction_budgets=[[8, 4], [4, 8], [8, 4]])
    use_norms_without_fp32(model)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True, compile=compiled)
    expected = tc.naive_logprobs(model, rollouts).logprobs
    assert_close(padded(rollouts), expected)
    assert_close(tc.replay(model, rollouts).logprobs, expected)


@by_both
def test_eager_attention_is_the_same_policy(by):
    # transformers' eager attention has an fp32 softmax and breaks on padding in fp64, hence the dtype.
    model = model_of(by, dtype=torch.float32, eviction="random")
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
    model.base_model.model.set_attn_implementation("eager")
    again = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
    for found in (tc.replay(model, rollouts).logprobs, padded(again)):
        assert_close(found.detach(), padded(rollouts), torch.float32)
    # One token at a time, in fp32, with sums of its own; a mask that is not heeded is wrong by more than a nat.
    assert (tc.naive_logprobs(model, rollouts).logprobs - padded(rollouts)).abs().max() < 1e-4


@by_both
@pytest.mark.parametrize("gradient", ["exact", "detached", 2])
@pytest.mark.parametrize(
    ("eviction", "positions"), [("sliding", "rolling"), ("random", "rolling"), ("h2o", "absolute")]
)
def test_gradient_modes_and_records_of_sampling(eviction, positions, gradient, by):
    model = model_of(by, eviction=eviction, positions=positions, state_rule="gated")
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=LENGTH, prompts=PROMPTS[1:], record_kv="device")
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts, gradient=gradient)))
    for options in ({"kv_log": "host"}, {"recompute": False}, {"reuse": True, "chunk_tokens": 3}):
        assert_gradients_match(gradient_of(model, rollouts, gradient=gradient, **options), expected)


@by_both
@pytest.mark.parametrize("positions", ["absolute", "rolling"])
@pytest.mark.parametrize("eviction", [*KINDS, "h2o", "expected-attention"])
def test_generate_is_the_greedy_rollout(eviction, positions, by):
    """Keys in every layer and states too: `generate` has a cache of its own."""
    model = model_of(by, eviction=eviction, positions=positions, memory="both", memory_features=4)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, temperature=0.0, ignore_eos=True)
    options = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}
    if eviction == "random":  # rows of `generate` share their seed, and in a rollout prompts have the call's
        rollouts = [tc.rollout(model, [one], max_new_tokens=LENGTH, temperature=0.0)[0] for one in PROMPTS]
    out = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
    assert out.tolist() == [row.token_ids for row in rollouts]


@by_both
@pytest.mark.parametrize("eviction", KINDS)
def test_bytes_of_records_and_of_slots(eviction, by):
    """What is foretold is held, and no layer has room for more than its own budget, or that of its largest head."""
    model = model_of(by, eviction=eviction)
    with tc.Engine(model, num_slots=4, max_prompt_tokens=7, max_new_tokens=LENGTH, record_kv="device") as engine:
        for row, prompt in enumerate(PROMPTS):
            engine.add(tc.Request(prompt_ids=prompt, max_new_tokens=LENGTH - row, seed=row, ignore_eos=True))
        while engine.cache.layers[0].keys is None:
            engine.step()
        columns = {"layer": [7 + 8, 7 + 4, 7 + 6], "head": [7 + 8, 7 + 8, 7 + 6]}[by]
        assert [layer.keys.shape[2] for layer in engine.cache.layers] == columns
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
    # The longest has 14 inputs: events before 4, 6, ..., 12. At the first two of them a layer more joins in; by head,
    # one head of each of the first layers is full at once, the last layer at the second, all at the third.
    assert [event.before_token for event in rollouts[0].evictions] == [4, 6, 8, 10, 12]
    if eviction == "random" and by == "head":
        assert [len(event.slots) for event in rollouts[0].evictions] == [2, 3, 3, 3, 3]
        first, second, third, *_ = (event.slots.ge(0).all(dim=2).tolist() for event in rollouts[0].evictions)
        assert first == [[False, True], [True, False]]
        assert second == [[False, True], [True, False], [True, True]]
        assert third == [[True, True]] * 3
    elif eviction == "random":
        assert [len(event.slots) for event in rollouts[0].evictions] == [1, 2, 3, 3, 3]
        # The log notes what is resident by budget.
        batch = batch_rollouts(rollouts, torch.device("cpu"))
        log = KVLog(batch, batch_chunks(batch), "device")
        counts = [
            {size: kept.shape[-1] for size, kept in one.columns.items()} for one in log.resident if one is not None
        ]
        assert counts == [{4: 4, 6: 4, 8: 4}, {4: 4, 6: 6, 8: 6}, *[{4: 4, 6: 6, 8: 8}] * 3]


@by_both
def test_static_shapes(monkeypatch, by):
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: function)
    for options in ({"eviction": "h2o", "positions": "rolling"}, {"memory": "attention", "memory_features": 4}):
        model = model_of(by, **options)
        plain, static = (
            tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, batch_size=3, compile=compiled)
            for compiled in (False, True)
        )
        assert [row.token_ids for row in plain] == [row.token_ids for row in static]
        assert_close(padded(static), padded(plain))
