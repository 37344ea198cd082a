"""Bytes of a call's records: foretold from lengths, held to the byte, bounded on request, allocated as they come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close, padded
from support.models import VOCABULARY, tiny_model
from thoughtcache.policy.handle import open_policy
from thoughtcache.sampler.record_bytes import ItemBytes, RecordBytes, item_bytes, record_bytes
from thoughtcache.sampler.slots.kv_recorder import KVRecorder

MODELS = {
    "sliding": tiny_model(window=4, evict_fraction=0.5),
    "random": tiny_model(window=4, evict_fraction=0.5, eviction="random"),
    "qwen3, float32": tiny_model("qwen3", window=3, evict_fraction=0.7, dtype=torch.float32, state_rule="gated"),
    "bfloat16": tiny_model(window=4, evict_fraction=0.5, dtype=torch.bfloat16, eviction="random"),
    "never absorbs": tiny_model(window=4, absorb=False),
    "plain LoRA": tiny_model(window=4, initial_state="identity", absorb=False, num_global_tokens=3),
    "full cache": tiny_model(window=None),
}
PROMPTS = [[3, 1, 4, 1, 5], [6, 5], [9]]
prompt_lists = st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=6), min_size=1, max_size=4)


def held(rollouts: list[tc.Rollout]) -> RecordBytes:
    """Bytes of the records themselves: whole storages where a record owns one, so that no view hides a larger one."""
    owned = {"states": 0, "keys_values": 0, "scores": 0}
    for rollout in rollouts:
        for name, tensor in (
            ("states", rollout.states),
            ("keys_values", rollout.keys_values),
            ("scores", rollout.logprobs),
            ("scores", rollout.sampled_logprobs),
            ("scores", rollout.entropies),
        ):
            owned[name] += 0 if tensor is None else tensor.untyped_storage().nbytes()
    slots = [event.slots.nbytes for rollout in rollouts for event in rollout.evictions if event.slots is not None]
    return RecordBytes(slots=sum(slots), **owned)


def foretold(model, rollouts: list[tc.Rollout], *, keys_values: bool) -> RecordBytes:
    shared = rollouts[0].settings
    return record_bytes(
        item_bytes(open_policy(model), shared.cache, shared.filters, keys_values=keys_values),
        [len(rollout.prompt_ids) for rollout in rollouts],
        [len(rollout.token_ids) for rollout in rollouts],
        shared.budgets or [shared.window] * 2,
        shared.num_evicted,
    )


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    prompts=prompt_lists,
    length=st.integers(1, 19),
    record_kv=st.sampled_from([None, "device", "host"]),
    top_k=st.sampled_from([0, 5]),
    num_slots=st.integers(1, 4),
)
def test_what_is_foretold_is_what_is_held(name, prompts, length, record_kv, top_k, num_slots):
    model = MODELS[name]
    options = {"max_new_tokens": length, "record_kv": record_kv, "top_k": top_k, "batch_size": num_slots}
    for rollouts in (
        tc.rollout(model, prompts, ignore_eos=True, **options),
        tc.rollout(model, prompts, stop_ids=[3, 7, 9], **options),
    ):
        assert foretold(model, rollouts, keys_values=record_kv is not None) == held(rollouts)


def test_the_base_records_no_states():
    model = MODELS["random"]
    with model.disable_adapter():
        rollouts = tc.rollout(model, PROMPTS, max_new_tokens=9, ignore_eos=True)
        assert foretold(model, rollouts, keys_values=False) == held(rollouts)
    assert held(rollouts).states == 0
    assert held(rollouts).slots > 0


def test_by_hand():
    items = ItemBytes(state=100, slots=10, token=7, thought=3)
    # 9 thoughts are 8 inputs: evictions of 2 before inputs 4 and 6, in the last layer before 6. 4 thoughts: none.
    found = record_bytes(items, [5, 2], [9, 4], [4, 4, 6], 2)
    assert found == RecordBytes(states=200, slots=50, keys_values=7 * (5 + 8 + 2 + 3), scores=3 * 13)
    assert found.total == 200 + 50 + 126 + 39
    assert record_bytes(items, [5], [9], [None], None).states == 0


@pytest.mark.parametrize("name", ["random", "full cache"])
def test_a_bound_is_kept_to_the_byte(name, monkeypatch):
    model = MODELS[name]
    options = {"max_new_tokens": 9, "record_kv": "device", "ignore_eos": True}
    needed = held(tc.rollout(model, PROMPTS, **options)).total
    assert held(tc.rollout(model, PROMPTS, max_record_bytes=needed, **options)).total == needed
    monkeypatch.setattr("thoughtcache.sampler.prompts.prefill", None)  # whoever samples anyhow fails
    with pytest.raises(ValueError, match=rf"max_record_bytes={needed - 1} is less than the {needed} bytes") as refusal:
        tc.rollout(model, PROMPTS, max_record_bytes=needed - 1, **options)
    for remedy in ("fewer prompts", "lower max_new_tokens", "leave record_kv out", "raise max_record_bytes"):
        assert remedy in str(refusal.value)
    assert ("widen the window" in str(refusal.value)) == (name == "random")


def test_sequences_that_might_end_early_count_in_full():
    model = MODELS["sliding"]
    options = {"max_new_tokens": 30, "stop_ids": list(range(VOCABULARY))}
    assert all(len(r.token_ids) == 1 for r in tc.rollout(model, PROMPTS, **options))
    with pytest.raises(ValueError, match="at max_new_tokens"):
        tc.rollout(model, PROMPTS, max_record_bytes=5000, **options)


@pytest.mark.parametrize("name", ["random", "full cache"])
def test_the_log_grows_with_the_sequence(name, monkeypatch):
    model = MODELS[name]
    original, held_columns = KVRecorder.copy_new, []

    def watched(self, cache, slot, num_processed):
        original(self, cache, slot, num_processed)
        held_columns.append((sum(piece.shape[3] for piece in self._pieces), num_processed))

    monkeypatch.setattr(KVRecorder, "copy_new", watched)
    found = tc.rollout(model, PROMPTS * 2, max_new_tokens=18, stop_ids=[3, 7], record_kv="device", batch_size=2)
    assert held_columns
    assert all(columns == processed for columns, processed in held_columns)
    with torch.no_grad():
        assert_close(tc.replay(model, found).logprobs, padded(found))
