"""What an eviction holds at once."""

from __future__ import annotations

import weakref

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close
from support.models import tiny_model
from thoughtcache.sampler import sequence
from thoughtcache.state.adapter_state import AdapterState


@pytest.mark.parametrize("eviction", ["sliding", "random"])
def test_what_left_a_layer_is_gone_before_the_next_layer_absorbs(
    eviction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(window=4, evict_fraction=0.5, eviction=eviction)
    absorber = AdapterState.absorber
    layers: list[int] = []
    earlier: list[weakref.ref[torch.Tensor]] = []

    def watched(self):
        absorb = absorber(self)

        def call(layer, state, keys, values, positions, due):
            assert not any(block() is not None for block in earlier), f"layer {layer} finds blocks of another"
            earlier[:] = [weakref.ref(keys), weakref.ref(values)]
            layers.append(layer)
            return absorb(layer, state, keys, values, positions, due)

        return call

    monkeypatch.setattr(AdapterState, "absorber", watched)
    tc.rollout(model, [[3, 4, 5], [6, 7]], max_new_tokens=13, ignore_eos=True)
    count = model.config.num_hidden_layers
    assert count > 1
    assert layers[:count] == list(range(count))


def test_recorded_states_are_handed_over_and_hold_no_more_than_they_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, on_host = tiny_model(window=4, evict_fraction=0.5), [], sequence._on_host

    def noted(shape, like):
        made.append(on_host(shape, like))
        return made[-1]

    monkeypatch.setattr(sequence, "_on_host", noted)
    first = tc.Engine(model, num_slots=2).run(
        [tc.Request(prompt_ids=[3, 4, 5], max_new_tokens=13, ignore_eos=True) for _ in range(2)]
    )
    assert [rollout.states.data_ptr() for rollout in first] == [tensor.data_ptr() for tensor in made]
    # The same sequence, which now ends at its eighth token.
    stop = first[0].token_ids[7]
    request = tc.Request(prompt_ids=[3, 4, 5], max_new_tokens=13, stop_ids=[stop])
    (early,) = tc.Engine(model, num_slots=1).run([request])
    count = len(early.evictions)
    assert 0 < count < len(first[0].evictions)
    assert_close(early.states, first[0].states[:count])
    assert early.states.untyped_storage().nbytes() == early.states.nbytes
