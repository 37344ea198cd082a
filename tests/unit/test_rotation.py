"""Moved keys are the keys that the model would have made at the new positions; positions stay in the window."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import thoughtcache as tc
from support.compare import assert_close
from support.models import POSITIONS, tiny_base, tiny_model
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.cache.rotation import key_rotations
from thoughtcache.policy.handle import find_tuner

TOKENS = torch.tensor([[5, 7, 1, 2]])


def first_layer_keys(base, positions):
    cache = DynamicCache()
    base(input_ids=TOKENS, position_ids=positions, use_cache=True, **cache_keyword(base, cache))
    return cache.layers[0].keys


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 40},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
@torch.no_grad()
def test_keys_are_those_of_the_new_positions(rope):
    base = tiny_base(rope_parameters=rope)
    rotation = key_rotations(base.config, base.model.rotary_emb)[0]
    old = first_layer_keys(base, torch.arange(60, 64)[None])
    # transformers forms its angles in fp32, hence the tolerance.
    torch.testing.assert_close(
        rotation.shift(old, -20), first_layer_keys(base, torch.arange(40, 44)[None]), atol=2e-5, rtol=0
    )
    by = torch.tensor([-60, -1, 0, 9]).expand(*old.shape[:3])
    expected = first_layer_keys(base, torch.tensor([[0, 60, 62, 72]]))
    torch.testing.assert_close(rotation.shift(old, by), expected, atol=2e-5, rtol=0)


def test_many_small_moves_are_one_large_one():
    base = tiny_base()
    rotation = key_rotations(base.config, base.model.rotary_emb)[0]
    keys = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    moved = keys
    for _ in range(7):
        moved = rotation.shift(moved, -3)
    assert_close(moved, rotation.shift(keys, -21))
    assert_close(rotation.shift(moved, 21), keys)


def test_entries_behind_the_rotary_ones_stay():
    rotation = key_rotations(tiny_base().config, tiny_base().model.rotary_emb)[0]
    size = 2 * rotation.frequencies.shape[0]
    keys = torch.randn(1, 1, 2, size + 3, dtype=torch.float64)
    moved = rotation.shift(keys, 5)
    assert torch.equal(moved[..., size:], keys[..., size:])
    assert not torch.equal(moved[..., :size], keys[..., :size])


def test_frequencies_that_change_are_refused():
    base = tiny_base(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(ValueError, match="rope type 'dynamic'"):
        key_rotations(base.config, base.model.rotary_emb)


def test_layers_without_positions_are_left_alone():
    base = tiny_base("smollm3")
    first, second = key_rotations(base.config, base.model.rotary_emb)
    assert first is not None
    assert second is None


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="positions='relative' is not known"):
        tc.ThoughtConfig(positions="relative")


def positions_of(model, run):
    seen = []
    hook = find_tuner(model).backbone.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    run()
    hook.remove()
    return max(seen)


def test_lengths_beyond_the_positions_of_the_model():
    prompt, length = [3, 1, 4], 2 * POSITIONS
    with pytest.raises(ValueError, match=f'more than the {POSITIONS} positions.*positions="rolling"'):
        tc.rollout(tiny_model(), [prompt], max_new_tokens=length)
    model = tiny_model(positions="rolling", window=5)
    found = []
    assert positions_of(model, lambda: found.extend(tc.rollout(model, [prompt], max_new_tokens=length))) == 3 + 5 - 1
    assert len(found[0].token_ids) == length
    with torch.no_grad():
        assert positions_of(model, lambda: tc.replay(model, found)) == 3 + 5 - 1
        assert_close(tc.replay(model, found).logprobs[0], found[0].logprobs)
        with pytest.raises(ValueError, match="together more than"):
            tc.replay(model, found, full_cache=True)
    with pytest.raises(ValueError, match=f"the window is {POSITIONS}, together more than"):
        tc.rollout(tiny_model(positions="rolling", window=POSITIONS), [prompt], max_new_tokens=length)


def test_rolling_positions_are_absolute_ones_while_nothing_leaves():
    absolute, rolling = (tiny_model(positions=positions, window=9) for positions in ("absolute", "rolling"))
    one, other = (tc.rollout(model, [[3, 1, 4]], max_new_tokens=10)[0] for model in (absolute, rolling))
    assert torch.equal(one.logprobs, other.logprobs)
    longer = [tc.rollout(model, [[3, 1, 4]], max_new_tokens=30)[0].logprobs for model in (absolute, rolling)]
    assert not torch.allclose(*longer)


def test_transformers_generate_rolls_as_well():
    model = tiny_model(positions="rolling", window=4, evict_fraction=0.5)
    prompt = [3, 1, 4, 1, 5]
    expected = tc.rollout(model, [prompt], max_new_tokens=30, temperature=0.0, ignore_eos=True)[0].token_ids
    found = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[0, len(prompt) :]
    assert found.tolist() == expected
