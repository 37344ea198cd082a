"""Policies that choose: what random eviction draws from, and what a policy is shown."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

import thoughtcache as tc
from support.compare import assert_close, padded
from support.models import tiny_model
from thoughtcache.cache.eviction import EVICTION_POLICIES, EvictionPolicy, EvictionView, make_eviction_policy

LAYERS, HEADS, WINDOW, NUM_EVICTED = 2, 2, 4, 2
PROMPTS = [[3, 1, 4, 1, 5], [6, 5], [3, 1, 4, 1, 5], [9], [2, 7, 1, 8], [6, 5], [4]]


def drawn(layer: int, events: list[tuple[int, int]], window: int = WINDOW, num_evicted: int = NUM_EVICTED) -> Tensor:
    """[events, H, E] by the policy itself."""
    block = torch.zeros(len(events), HEADS, window, 6)
    view = EvictionView(layer_index=layer, keys=block, values=block, num_evicted=num_evicted, events=events)
    slots = make_eviction_policy("random").select(view)
    assert slots is not None
    return slots


def test_every_event_draws_anew_and_every_slot_is_as_likely() -> None:
    """In 600 events of one sequence each slot leaves as often as any other, within five standard deviations."""
    slots = drawn(0, [(7, event) for event in range(600)])
    assert (slots.diff(dim=-1) > 0).all()
    for head in range(HEADS):
        counts = torch.bincount(slots[:, head].flatten(), minlength=WINDOW)
        assert ((counts - 300).abs() < 5 * 150**0.5).all()
    assert not torch.equal(slots[0], slots[1])


@pytest.mark.parametrize("changed", [{"seed": 8}, {"event": 1}, {"layer": 1}, {"head": 1}], ids=str)
def test_seed_event_layer_and_head_each_decide(changed: dict[str, int]) -> None:
    def choice(seed: int = 7, event: int = 0, layer: int = 0, head: int = 0) -> list[int]:
        return drawn(layer, [(seed, event)], window=100, num_evicted=10)[0, head].tolist()

    assert choice() == choice()
    assert choice() != choice(**changed)


@pytest.mark.parametrize("num_slots", [1, 2, 4, 14])
def test_the_nth_eviction_of_a_sequence_is_event_n_of_its_seed(num_slots: int) -> None:
    """Whatever slot it sits in: slots are refilled, dropped and renumbered while other sequences go on."""
    model = tiny_model(window=WINDOW, evict_fraction=0.5, state_rule="gated", eviction="random")
    seeds = [11, 5, 5, 8, 2, 30, 4] * 2
    rollouts = tc.rollout(model, PROMPTS * 2, max_new_tokens=17, stop_ids=[3, 7], seed=seeds, batch_size=num_slots)
    lengths = [len(rollout.evictions) for rollout in rollouts]
    assert len(set(lengths)) > 2
    assert max(lengths) > 4
    for rollout, seed in zip(rollouts, seeds, strict=True):
        for number, event in enumerate(rollout.evictions):
            expected = torch.stack([drawn(layer, [(seed, number)])[0] for layer in range(LAYERS)])
            assert event.slots is not None
            assert torch.equal(event.slots, expected)


class SmallestValues(EvictionPolicy):
    """What a policy that scores tokens would look like: the smallest values leave; remembers what it was shown."""

    name: ClassVar[str] = "smallest values"
    shown: ClassVar[dict[tuple[int, int, int], tuple[Tensor, Tensor]]] = {}

    def select(self, view: EvictionView) -> Tensor:
        """By the norm of a value."""
        for row, (seed, number) in enumerate(view.events):
            self.shown[seed, number, view.layer_index] = view.keys[row].clone(), view.values[row].clone()
        return view.values.norm(dim=-1).argsort(dim=-1)[:, :, : view.num_evicted].sort(dim=-1).values


def test_a_policy_is_shown_the_resident_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per layer and head the thoughts that are still there, in their order in time; what it chooses is replayed."""
    monkeypatch.setitem(EVICTION_POLICIES, SmallestValues.name, SmallestValues)
    model = tiny_model(window=WINDOW, evict_fraction=0.5, eviction=SmallestValues.name)
    seeds = list(range(len(PROMPTS)))
    rollouts = tc.rollout(
        model, PROMPTS, max_new_tokens=13, stop_ids=[3, 7], seed=seeds, batch_size=3, record_kv="device"
    )
    assert max(len(rollout.evictions) for rollout in rollouts) > 3
    for rollout, seed in zip(rollouts, seeds, strict=True):
        assert rollout.keys_values is not None
        thoughts = rollout.keys_values[:, :, :, len(rollout.prompt_ids) :]  # [L, 2, H, T - 1, D]
        resident = [[list(range(WINDOW)) for _ in range(HEADS)] for _ in range(LAYERS)]
        for number, event in enumerate(rollout.evictions):
            assert event.slots is not None
            for layer in range(LAYERS):
                for head in range(HEADS):
                    here = resident[layer][head]
                    keys, values = (shown[head] for shown in SmallestValues.shown[seed, number, layer])
                    assert torch.equal(keys, thoughts[layer, 0, head, here])
                    assert torch.equal(values, thoughts[layer, 1, head, here])
                    gone = event.slots[layer, head].tolist()
                    assert gone == sorted(values.norm(dim=-1).argsort()[:NUM_EVICTED].tolist())
                    stay = [token for slot, token in enumerate(here) if slot not in gone]
                    first = event.before_token
                    resident[layer][head] = [*stay, *range(first, first + NUM_EVICTED)]
    with torch.no_grad():
        assert_close(tc.naive_logprobs(model, rollouts).logprobs, padded(rollouts))
