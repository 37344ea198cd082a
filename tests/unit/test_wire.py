"""Records survive the wire bit for bit, whatever their fields."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import thoughtcache as tc
from support.models import tiny_model
from support.rollouts import ragged_rollouts
from thoughtcache.config import START_SETTINGS
from thoughtcache.scale.adapter_weights import SHAPES, load_adapter, pack_adapter
from thoughtcache.scale.wire import _encode, join, pack_rollouts, unpack_rollouts


def same(left: Any, right: Any) -> bool:
    """Equal in type, dtype and every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
    return left == right


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("eviction", ["sliding", "random"])
def test_rollouts_survive_with_everything_they_carry(eviction: str, dtype: torch.dtype) -> None:
    rollouts = ragged_rollouts(tiny_model(eviction=eviction, dtype=dtype), max_new_tokens=13, record_kv="host")
    first = rollouts[0]
    assert first.evictions
    assert (first.evictions[0].slots is None) is (eviction == "sliding")
    for name in ("states", "keys_values", "entropies"):
        assert getattr(first, name) is not None
    found = unpack_rollouts(pack_rollouts(rollouts))
    assert same(found, rollouts)
    changed = [replace(first, logprobs=first.logprobs + 1e-3), *rollouts[1:]]
    assert not same(found, changed), "the comparison sees nothing"


def test_what_is_absent_stays_absent() -> None:
    model = tiny_model(window=None, initial_state="identity", absorb=False, num_global_tokens=3)
    rollouts = tc.rollout(model, [[3, 1]], max_new_tokens=2)
    assert rollouts[0].states is None
    assert same(unpack_rollouts(pack_rollouts(rollouts)), rollouts)
    assert unpack_rollouts(pack_rollouts([])) == []


def test_every_setting_travels_with_the_adapter_or_shows_in_its_shapes() -> None:
    """A new field of `ThoughtConfig` must be entered in one of the two."""
    shown, starts = {"r", "target_modules", "task_type", "num_global_tokens"}, set(START_SETTINGS)
    assert starts == {"write_scale", "encoder_start", "read_start", "memory_weight"}
    assert set(tc.ThoughtConfig.__annotations__) - shown - starts <= set(tc.ThoughtConfig().behaviour())
    assert not starts & set(tc.ThoughtConfig().behaviour())


OTHER_SETTINGS: dict[str, Any] = {
    "eviction_options": {"sinks": 2},
    "eviction_budgets": [4, 6],
    "lora_alpha": 7,
    "use_rslora": True,
    "alpha_pattern": {"q_proj": 9},
    "window": 7,
    "evict_fraction": 0.75,
    "eviction": "random",
    "positions": "rolling",
    "initial_state": "zero",
    "absorb": False,
    "state_rule": "softmax",  # as many parameters as the linear rule
    "state_norm": "none",
    "state_norm_at": "read",
}
OTHER_MEMORIES: dict[str, Any] = {"memory_feature_map": "hedgehog", "memory_write": "delta", "memory_keys": "rotated"}
"""Between memories of as many parameters."""
IN_PARAMETERS = {*SHAPES, "memory", "memory_features", "memory_read"}


@pytest.mark.parametrize("name", sorted(OTHER_MEMORIES))
def test_a_memory_of_other_settings_is_refused(name: str) -> None:
    value, common = OTHER_MEMORIES[name], {"memory": "attention", "memory_features": 6, "memory_write": "decay"}
    model = tiny_model(**common)
    before = getattr(model.peft_config["default"], name)
    load_adapter(model, pack_adapter(tiny_model(**common)))
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} (the sampler has {before!r})")):
        load_adapter(model, pack_adapter(tiny_model(**{**common, name: value})))


@pytest.mark.parametrize("other", [{}, {"memory": "attention", "memory_features": 8}], ids=["adapter", "more features"])
def test_another_memory_shows_in_its_parameters(other: dict[str, Any]) -> None:
    model = tiny_model(memory="attention", memory_features=6)
    with pytest.raises(ValueError, match=r"other parameters than the sampler's.*memory"):
        load_adapter(model, pack_adapter(tiny_model(**other)))


@pytest.mark.parametrize(
    "name", sorted({*OTHER_SETTINGS, *tc.ThoughtConfig().behaviour()} - {*IN_PARAMETERS, *OTHER_MEMORIES})
)
def test_an_adapter_of_other_settings_is_refused(name: str) -> None:
    common = {"eviction": "streaming"} if name == "eviction_options" else {}
    value, model = OTHER_SETTINGS[name], tiny_model(**common)
    other = {**common, name: value}
    before = getattr(model.peft_config["default"], name)
    load_adapter(model, pack_adapter(tiny_model(**common)))
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} (the sampler has {before!r})")):
        load_adapter(model, pack_adapter(tiny_model(**other)))


def test_views_that_share_memory_are_sent_as_what_they_show() -> None:
    whole = torch.arange(12.0)
    record = tc.rollout(tiny_model(), [[3]], max_new_tokens=3)[0]
    rows = [replace(record, logprobs=whole[0:6:2]), replace(record, logprobs=whole[1:4])]
    found = unpack_rollouts(pack_rollouts(rows))
    assert found[0].logprobs.tolist() == [0.0, 2.0, 4.0]
    assert found[1].logprobs.tolist() == [1.0, 2.0, 3.0]


def test_only_what_was_on_the_host_of_the_sender_stays_on_the_host() -> None:
    record = tc.rollout(tiny_model(), [[3]], max_new_tokens=3)[0]
    found = unpack_rollouts(pack_rollouts([record]), device="meta")[0]
    assert found.logprobs.device.type == "cpu"
    data = pack_rollouts([record])
    moved = data.replace(b'"host": true', b'"host":false')
    assert unpack_rollouts(moved, device="meta")[0].logprobs.device.type == "meta"


def test_what_has_no_place_on_the_wire_is_refused() -> None:
    for value in ({1}, {"a": 1}, tc.ThoughtConfig(r=2)):
        with pytest.raises(ValueError, match=f"{type(value).__name__} cannot be sent"):
            _encode(value, {})


@pytest.mark.parametrize("keep", [0, 5, 30])
def test_other_bytes_are_refused(keep: int) -> None:
    data = pack_rollouts(tc.rollout(tiny_model(), [[3]], max_new_tokens=3))
    with pytest.raises(ValueError, match="no packed rollouts"):
        unpack_rollouts(data[:keep])


def test_damaged_bytes_are_refused_however_they_are_damaged() -> None:
    whole = pack_rollouts(tc.rollout(tiny_model(), [[3]], max_new_tokens=3))
    head = 8 + int.from_bytes(whole[:8], "little")
    other_form = join([{"something": "else"}], {})
    damaged = [whole[:-3], whole[:head] + b"garbage " * 9, whole[:8] + b"?" * (head - 8) + whole[head:], other_form]
    for data in damaged:
        with pytest.raises(ValueError, match=f"{len(data)} bytes are no packed rollouts; pass what pack_rollouts"):
            unpack_rollouts(data)
