"""What an eviction holds at once."""

from __future__ import annotations

import weakref

import pytest
import torch

import thoughtcache as tc
from support.models import tiny_model
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

        def call(layer, state, keys, values, positions):
            assert not any(block() is not None for block in earlier), f"layer {layer} finds blocks of another"
            earlier[:] = [weakref.ref(keys), weakref.ref(values)]
            layers.append(layer)
            return absorb(layer, state, keys, values, positions)

        return call

    monkeypatch.setattr(AdapterState, "absorber", watched)
    tc.rollout(model, [[3, 4, 5], [6, 7]], max_new_tokens=13, ignore_eos=True)
    count = model.config.num_hidden_layers
    assert count > 1
    assert layers[:count] == list(range(count))
