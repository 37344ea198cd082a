"""Slots: whatever waits, ends or is refilled beside it, a sequence is the one that it would be alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients, padded, weighted_loss
from support.models import VOCABULARY, tiny_model
from support.operators import WAITING, Operators
from thoughtcache.sampler import prefill as prefill_module
from thoughtcache.sampler.engine import Engine

PROMPTS = [[3, 1, 4, 1, 5], [6, 5], [3, 1, 4, 1, 5], [9], [2, 7, 1, 8], [6, 5], [4]]
LENGTH = 17
MODELS = {
    **{
        eviction: tiny_model(window=4, evict_fraction=0.5, state_rule="gated", eviction=eviction)
        for eviction in ("sliding", "random")
    },
    "rolling": tiny_model(window=4, evict_fraction=0.5, eviction="random", positions="rolling"),
}
prompt_lists = st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=6), min_size=1, max_size=6)


def assert_same(one: list[tc.Rollout], other: list[tc.Rollout]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.token_ids == right.token_ids
        assert left.finish_reason == right.finish_reason
        assert [e.before_token for e in left.evictions] == [e.before_token for e in right.evictions]
        assert_close(left.logprobs, right.logprobs)
        assert (left.states is None) == (right.states is None)
        if left.states is not None and right.states is not None:
            assert_close(left.states, right.states)


def stopping(model, prompts, **arguments):
    """Rollouts that end at one of two tokens, so that slots are refilled in no particular order."""
    return tc.rollout(model, prompts, max_new_tokens=LENGTH, stop_ids=[3, 7], **arguments)


@pytest.mark.parametrize("num_slots", [1, 2, 3, 5, 100])
def test_tokens_do_not_depend_on_the_number_of_slots(num_slots):
    model = MODELS["sliding"]
    alone = [stopping(model, [prompt], seed=0)[0] for prompt in PROMPTS[:1]]
    whole = stopping(model, PROMPTS)
    assert {r.finish_reason for r in whole} == {"stop", "length"}
    assert len({len(r.token_ids) for r in whole}) > 3
    assert_same(stopping(model, PROMPTS, batch_size=num_slots), whole)
    assert_same(alone, whole[:1])


@settings(max_examples=25, deadline=None)
@given(
    prompts=prompt_lists,
    num_slots=st.integers(1, 4),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(sorted(MODELS)),
    stop_ids=st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
)
def test_replay_agrees_with_every_schedule(prompts, num_slots, seed, kind, stop_ids):
    model = MODELS[kind]
    rollouts = tc.rollout(
        model, prompts, max_new_tokens=LENGTH, seed=seed, batch_size=num_slots, stop_ids=stop_ids, record_kv="device"
    )
    with torch.no_grad():
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts))
        assert_close(tc.naive_logprobs(model, rollouts).logprobs, padded(rollouts))
    for rollout in rollouts:
        assert (rollout.token_ids[-1] in stop_ids) == (rollout.finish_reason == "stop")
        assert not set(rollout.token_ids[:-1]) & set(stop_ids)
        assert rollout.keys_values.shape[3] == len(rollout.prompt_ids) + len(rollout.token_ids) - 1


def test_records_of_refilled_slots_serve_the_learner():
    model = MODELS["random"]
    rollouts = stopping(model, PROMPTS, batch_size=2, record_kv="host")
    found = gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, reuse=True)))
    assert_gradients_match(found, gradients(model, lambda: weighted_loss(tc.replay(model, rollouts))))


def test_looking_rarely_changes_nothing(monkeypatch):
    from thoughtcache.sampler import engine

    model = MODELS["sliding"]
    expected = stopping(model, PROMPTS, batch_size=3, record_kv="device")
    original = engine.Engine.__init__

    def rarely(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.looks_every = 5

    monkeypatch.setattr(engine.Engine, "__init__", rarely)
    found = stopping(model, PROMPTS, batch_size=3, record_kv="device")
    assert_same(found, expected)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.keys_values, other.keys_values)
        assert_close(one.entropies, other.entropies)


def test_a_prompt_is_processed_once_for_all_its_completions(monkeypatch):
    model = MODELS["sliding"]
    seen = []
    original = prefill_module.prefill

    def counted(policy, prompts):
        seen.extend(prompts)
        return original(policy, prompts)

    monkeypatch.setattr("thoughtcache.sampler.prompts.prefill", counted)
    rollouts = tc.rollout(model, PROMPTS * 3, max_new_tokens=5, batch_size=4, ignore_eos=True)
    assert sorted(seen) == sorted({tuple(prompt) for prompt in PROMPTS})
    assert [r.prompt_ids for r in rollouts] == PROMPTS * 3
    assert len({tuple(r.token_ids) for r in rollouts if r.prompt_ids == [9]}) > 1  # seeds differ by row


def test_a_waiting_prompt_keeps_its_own_keys_and_values_only(monkeypatch):
    """Not those of the longer prompt that was processed with it."""
    model, sizes = MODELS["sliding"], []
    original = Engine._draw

    def looked_at(engine):
        for entry in engine.prompts.prefilled.values():
            tensors = [entry.hidden, *(tensor for pair in entry.past for tensor in pair)]
            sizes.extend((tensor.untyped_storage().nbytes(), tensor.nbytes) for tensor in tensors)
        original(engine)

    monkeypatch.setattr(Engine, "_draw", looked_at)
    prompts = [[6, 5], [3, 1, 4, 1, 5, 9], [6, 5], [6, 5]]
    found = stopping(model, prompts, batch_size=2)
    assert sizes
    assert all(held == own for held, own in sizes)
    assert_same(found, stopping(model, prompts))


def test_a_model_samples_for_one_call_at_a_time():
    model = MODELS["sliding"]
    expected = stopping(model, PROMPTS)
    with pytest.raises(RuntimeError, match="this model is sampling already"):
        stopping(model, PROMPTS, progress=lambda _: stopping(model, PROMPTS))
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert_same(stopping(model, PROMPTS), expected)


@pytest.mark.parametrize("columns", [1, 2, 3, 100])
def test_prompts_in_chunks(columns, monkeypatch):
    model = MODELS["sliding"]
    expected = stopping(model, PROMPTS)
    monkeypatch.setattr(prefill_module, "CHUNK_COLUMNS", columns)
    assert_same(stopping(model, PROMPTS), expected)


def test_slots_are_refilled_at_once():
    model = MODELS["sliding"]
    rounds = []
    hook = model.base_model.backbone.register_forward_hook(
        lambda module, args, kwargs, output: rounds.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    rollouts = stopping(model, [[5]] * 24, batch_size=4)
    hook.remove()
    decoded = [shape[0] for shape in rounds if shape[1] == 1][1:]  # the first one is the prefill of [5]
    useful = sum(len(r.token_ids) - 1 for r in rollouts)
    # One round is lost whenever a sequence ends; the rest is the tail, in which half-empty slots are dropped.
    assert useful <= sum(decoded) <= useful + len(rollouts) + 2 * LENGTH
    static = sum(4 * (max(len(r.token_ids) for r in rollouts[i : i + 4]) - 1) for i in range(0, 24, 4))
    assert sum(decoded) < static


def test_a_round_asks_nothing_of_the_device_and_sends_it_nothing(monkeypatch):
    """Except when sequences begin, evict or are looked at: 40 rounds of three slots, an eviction every two of them."""
    from thoughtcache.sampler import engine
    from thoughtcache.sampler.slots import slot_cache, window_block

    sent, original = [], window_block.to_device

    def counted(values, device):
        sent.append(len(values))
        return original(values, device)

    for module in (window_block, slot_cache):
        monkeypatch.setattr(module, "to_device", counted)
    monkeypatch.setattr(engine.Engine, "_harvest", lambda self, look: None)
    evictions = []
    evict = engine.Engine._evict
    monkeypatch.setattr(engine.Engine, "_evict", lambda self, due: (evictions.append(len(due)), evict(self, due)))

    class _Enough(Exception):
        pass

    steps = []

    def step(self, cache, tokens):
        if len(steps) == 40:
            raise _Enough
        with Operators() as seen:
            hidden = run(self, cache, tokens)
        steps.append(seen.names & WAITING)
        return hidden

    run = engine.DecodeStep.__call__
    monkeypatch.setattr(engine.DecodeStep, "__call__", step)
    with pytest.raises(_Enough):
        tc.rollout(MODELS["rolling"], PROMPTS[:3], max_new_tokens=60, ignore_eos=True)
    assert len(evictions) > 10
    # Arrivals: one call per different prompt. Evictions: slots and where their thoughts begin.
    assert len(sent) == len({tuple(p) for p in PROMPTS[:3]}) + 2 * len(evictions)
    assert not set().union(*steps)


def test_rollouts_without_anchors_are_the_same_and_replay_from_their_own_states():
    model = MODELS["sliding"]
    with_anchors, without = (stopping(model, PROMPTS, anchors=anchors) for anchors in (True, False))
    assert [r.token_ids for r in without] == [r.token_ids for r in with_anchors]
    assert any(r.states is not None for r in with_anchors)
    assert all(
        r.states is None and len(r.evictions) == len(o.evictions) for r, o in zip(without, with_anchors, strict=True)
    )
    with torch.no_grad():
        assert_close(tc.replay(model, without, anchored=False).logprobs, padded(with_anchors))


def test_logits_that_are_not_finite_are_refused_by_name():
    model = tiny_model(window=4)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="sampled token 0 of a sequence is not finite"):
        tc.rollout(model, PROMPTS[:2], max_new_tokens=3, ignore_eos=True)
