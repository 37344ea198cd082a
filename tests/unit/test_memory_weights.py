"""The memory in attention space by itself: its arithmetic by hand, its sizes, its settings, its life in PEFT."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

import thoughtcache as tc
from support.compare import assert_close, max_difference, padded
from support.models import adapt, tiny_base, tiny_model, trainable
from support.rollouts import PROMPTS
from thoughtcache.adapter.state_parameters import ENCODERS, MEMORIES, memory_shape
from thoughtcache.policy.handle import find_tuner
from thoughtcache.state.attention.features import FEATURE_MAPS
from thoughtcache.state.attention.read import read_memory, write_memory
from thoughtcache.state.attention.weights import MemoryTensors
from thoughtcache.state.attention.window_share import attention_with_share
from thoughtcache.state.attention.writes import WRITE_RULES


def make(**options: Any) -> Any:
    return tiny_model(**{"memory": "attention", "memory_features": 6, "evict_fraction": 0.4, **options})


def by_hand(write: str, read: str = "balanced") -> MemoryTensors:
    """One head of size 2 with two features whose projection is zero: both are one half, whatever the key."""
    config = tc.ThoughtConfig(memory="attention", memory_features=2, memory_write=write, memory_read=read)
    shape = memory_shape(config, (1, 1, 2))
    zeros = torch.zeros(1, 2, 1, dtype=torch.float64)
    return MemoryTensors(
        shape=shape,
        key_features=zeros,
        query_features=zeros,
        gate=torch.zeros(1, 4, dtype=torch.float64),
        gate_bias=torch.tensor([math.log(3)], dtype=torch.float64),  # strength 3/4
        weight=torch.tensor([2.0], dtype=torch.float64),
        decay=torch.tensor([0.5], dtype=torch.float64) if write != "linear" else None,
        output=2 * torch.eye(2, dtype=torch.float64)[None] if read == "added" else None,
    )


VALUES = torch.tensor([[4.0, 0.0], [0.0, 8.0]], dtype=torch.float64)[None, None]


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        # Features are sqrt(2)/2 each: b phi u = 0.53033 u, for u = [4, 0, 1] and then [0, 8, 1].
        ("linear", [2.1213203436, 4.2426406871, 1.0606601718]),
        # The first token has faded to one half when the second one is written.
        ("decay", [1.0606601718, 4.2426406871, 0.7954951288]),
        # Unit features: 0.53033 [4, 0, 1], halved; it says [1.5, 0, 0.375] at the key; 3/4 of the rest is added.
        ("delta", [1.0606601718 - 0.7954951288, 4.2426406871, 0.2651650429 + 0.3314563037]),
    ],
)
def test_two_writes_by_hand(write, expected):
    state = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    written = write_memory(by_hand(write), state, torch.ones(1, 1, 2, 2, dtype=torch.float64), VALUES)
    assert (written - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-9
    one = write_memory(by_hand(write), state, torch.ones(1, 1, 1, 2, dtype=torch.float64), VALUES[:, :, :1])
    both = write_memory(by_hand(write), one, torch.ones(1, 1, 1, 2, dtype=torch.float64), VALUES[:, :, 1:])
    assert_close(both, written)


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        # phi^T M = sqrt(2)/2 ([1, 3] + [3, 5]) = [2.828, 5.657]; phi^T z = sqrt(2)/2 (1 + 1) = 1.414; weight 2.
        ("balanced", [(1 + 5.656854249) / 3.828427125, (2 + 11.313708499) / 3.828427125]),
        ("added", [1 + 2 * 5.656854249, 2 + 2 * 11.313708499]),
    ],
)
def test_a_read_by_hand(read, expected):
    state = torch.tensor([[1.0, 3.0, 1.0], [3.0, 5.0, 1.0]], dtype=torch.float64)[None, None]
    output = torch.tensor([1.0, 2.0], dtype=torch.float64)[None, None, None]
    found = read_memory(by_hand("linear", read), state, torch.ones(1, 1, 1, 2, dtype=torch.float64), output)
    assert (found - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-8


@pytest.mark.parametrize("write", sorted(WRITE_RULES))
@pytest.mark.parametrize("features", sorted(FEATURE_MAPS))
def test_blocks_of_any_size_are_one_write(write, features):
    """Also where the memory held something, and with a strong decay."""
    read = "balanced" if FEATURE_MAPS[features].is_positive else "added"
    model = make(memory_write=write, memory_feature_map=features, memory_read=read)
    layer = find_tuner(model).memory_weights()[0]
    with torch.no_grad():
        if write != "linear":
            layer.decay.fill_(0.3)
        tensors = layer.tensors()
        keys, values = torch.randn(2, 3, 2, 11, 4, dtype=torch.float64)
        state = torch.randn(3, 2, 6, 5, dtype=torch.float64)
        whole = write_memory(tensors, state, keys, values)
        for size in (1, 2, 5):
            parts = state
            for start in range(0, 11, size):
                part = slice(start, start + size)
                parts = write_memory(tensors, parts, keys[:, :, part], values[:, :, part])
            assert_close(parts, whole)


def test_the_delta_rule_replaces_what_stood_at_a_key():
    """A second value for the same key, written with full strength, is what a read finds; a sum keeps both."""
    for write, expected in (("delta", 8.0), ("linear", 12.0)):
        tensors = by_hand(write)
        changed = {name: getattr(tensors, name) for name in MemoryTensors.__slots__}
        changed["gate_bias"] = torch.tensor([40.0], dtype=torch.float64)
        changed["decay"] = None if write == "linear" else torch.ones(1, dtype=torch.float64)
        tensors = MemoryTensors(**changed)
        values = torch.tensor([[4.0, 0.0], [8.0, 0.0]], dtype=torch.float64)[None, None]
        state = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
        written = write_memory(tensors, state, torch.ones(1, 1, 2, 2, dtype=torch.float64), values)
        features = tensors.features(torch.zeros(1, dtype=torch.float64))
        assert (features @ written[0, 0])[0].item() == pytest.approx(expected)


def test_sizes_are_counted():
    """Keys and values of a token are 2 H D numbers."""
    shape = memory_shape(tc.ThoughtConfig(memory="attention", memory_features=16), (9, 3, 64))
    assert shape.state_floats == 3 * 16 * 65
    assert shape.tokens_worth == pytest.approx(16 * 65 / 128)
    model = make()
    (row,) = tc.rollout(model, PROMPTS[:1], max_new_tokens=9, ignore_eos=True)
    assert row.states.shape[1:] == (2, 2, 6, 5)
    assert find_tuner(model).memory().state_bytes == row.states[0].nbytes


@pytest.mark.parametrize("write", sorted(WRITE_RULES))
@pytest.mark.parametrize("read", ["balanced", "added"])
def test_a_new_adapter_has_every_parameter_and_starts_at_the_window(write, read):
    """Without training, linears are those of the base; keys and queries start with the same features."""
    model = adapt(tiny_base(), randomise=False, memory="attention", memory_write=write, memory_read=read)
    for layer in find_tuner(model).memory_weights():
        names = set(dict(layer.named_parameters()))
        assert names == {"key_features", "query_features", "gate", "gate_bias", "log_weight"} | (
            {"decay"} if write != "linear" else set()
        ) | ({"output"} if read == "added" else set())
        assert torch.equal(layer.query_features[::2], layer.key_features)
        assert all(parameter.ndim for parameter in layer.parameters()), "FSDP refuses parameters without dimensions"
    assert all(module.in_features == 3 for name, module in model.named_modules() if name.endswith("lora_B.default"))
    with torch.no_grad():
        ids = torch.tensor([[3, 1, 4]])
        with model.disable_adapter():
            base = model(ids).logits
        assert_close(model(ids).logits, base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "slots"}, "memory='slots'"),
        ({"memory_features": 0}, "memory_features must be at least 1"),
        ({"memory_features": 7}, "memory_features=7 is odd.*use an even number"),
        ({"memory_features": 2, "memory_feature_map": "hedgehog"}, "memory_features=2 is too few .*use at least 4"),
        ({"window": None}, "window=None remembers nothing, because nothing is ever evicted"),
        ({"memory_feature_map": "cosine"}, "memory_feature_map='cosine'"),
        ({"memory_write": "hebb"}, "memory_write='hebb'"),
        ({"memory_read": "sum"}, "memory_read='sum'"),
        ({"memory_read": "joint", "memory_feature_map": "unit"}, "memory_read='joint' needs features that are shares"),
        ({"memory_keys": "both"}, "memory_keys='both'"),
        ({"memory_weight": 0.0}, "memory_weight must be positive, got 0.0"),
        ({"memory_feature_map": "unit"}, "has negative ones; use memory_read='added'"),
        ({"absorb": False}, "remembers nothing; for LoRA under the window"),
        ({"state_rule": "delta"}, "state_rule='delta' changes nothing under memory='attention'"),
        ({"num_global_tokens": 8}, "num_global_tokens=8 changes nothing under memory='attention'"),
        ({"memory": "adapter"}, "memory_features=6 changes nothing under memory='adapter'; leave it out"),
    ],
)
def test_settings_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tc.ThoughtConfig(**{"memory": "attention", "memory_features": 6, **options})


def test_rotations_that_cannot_be_undone_are_refused_and_the_model_stays():
    base = tiny_base(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    names = set(base.state_dict())
    with pytest.raises(ValueError, match="has rope type 'dynamic'; use memory_keys=\"rotated\""):
        adapt(base, memory="attention")
    assert set(base.state_dict()) == names
    adapt(base, memory="attention", memory_keys="rotated")


def test_saved_and_loaded_under_another_name(tmp_path):
    model = make(dtype=torch.float32, memory_write="delta", memory_read="added")
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_base(dtype=torch.float32), tmp_path, adapter_name="other").eval()
    with torch.no_grad():
        assert max_difference(tc.replay(again, rollouts).logprobs, padded(rollouts)) < 1e-5
    for name, value in trainable(model).items():
        other = dict(again.named_parameters())[name.replace(".default.", ".other.").replace(".default", ".other")]
        assert torch.equal(other, value), name


def test_beside_an_adapter_of_the_other_kind():
    """Each adapter keeps its own states; what one sampled is not replayed with the other."""
    model = make()
    mine = tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)
    model.add_adapter("paper", tc.ThoughtConfig(r=3, num_global_tokens=5, window=5))
    with torch.no_grad():
        assert_close(tc.replay(model, mine).logprobs, padded(mine))
    model.set_adapter("paper")
    theirs = tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)
    assert theirs[0].states.shape[2:] == (5, 3)
    with pytest.raises(ValueError, match="the adapter that sampled it"):
        tc.replay(model, mine)
    model.delete_adapter("default")
    assert not [name for name, _ in model.named_parameters() if MEMORIES in name]
    with torch.no_grad():
        assert_close(tc.replay(model, theirs).logprobs, padded(theirs))


def test_a_copy_is_independent_and_unloading_leaves_the_base():
    model = make()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in find_tuner(other).memory_weights():
            layer.log_weight.fill_(3.0)
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts))
        assert max_difference(tc.replay(other, rollouts, anchored=False).logprobs, padded(rollouts)) > 1e-3
    base = model.unload()
    assert not [name for name, _ in base.named_parameters() if "lora" in name]
    assert base.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_half_precision_stops_at_the_memory(cast):
    model = make().float().to(cast)
    kinds = {(MEMORIES in name, parameter.dtype) for name, parameter in model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, cast)}
    (row,) = tc.rollout(model, PROMPTS[:1], max_new_tokens=12, ignore_eos=True)
    assert row.states.dtype == torch.float32


def test_autocast_does_not_round_the_memory():
    model = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rollouts = tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)
        free = tc.replay(model, rollouts, anchored=False).logprobs
        naive = tc.naive_logprobs(model, rollouts).logprobs
    for row in rollouts:
        assert row.states.dtype == torch.float32
        assert not torch.equal(row.states, row.states.bfloat16().float())
    assert max_difference(free, padded(rollouts)) < 6e-3
    assert max_difference(naive, padded(rollouts)) < 6e-3


def test_both_memories_in_one_adapter(tmp_path):
    """Two holders, one state of all numbers, settings of both, the base when it is off, and a life in PEFT."""
    options = {"memory": "both", "dtype": torch.float32, "state_rule": "delta", "memory_write": "decay"}
    model: Any = make(**options)
    names = [name for name, _ in model.named_parameters()]
    assert any(MEMORIES in name for name in names)
    assert any(ENCODERS in name for name in names)
    assert model.base_model.state_size()[0] == 5 * 3 + 2 * 6 * 5
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)
    assert rollouts[0].states.shape[2:] == (75,)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_base(dtype=torch.float32), tmp_path, adapter_name="other").eval()
    with torch.no_grad():
        assert max_difference(tc.replay(again, rollouts).logprobs, padded(rollouts)) < 1e-5
        ids = torch.tensor([[3, 1, 4]])
        with again.disable_adapter():
            assert torch.equal(again(ids).logits, tiny_base(dtype=torch.float32).eval()(ids).logits)
    for drop in ("linears", "attention"):
        assert_each_matters(model, rollouts, drop)


def assert_each_matters(model: PeftModel, rollouts: list[tc.Rollout], drop: str) -> None:
    """Recorded states without the numbers of one memory give other probabilities."""
    part = slice(0, 15) if drop == "linears" else slice(15, None)
    changed = []
    for row in rollouts:
        states = row.states.clone()
        states[..., part] = 0
        changed.append(dataclasses.replace(row, states=states))
    with torch.no_grad():
        assert max_difference(tc.replay(model, changed).logprobs, padded(rollouts)) > 1e-4


def test_a_joint_read_by_hand():
    """Window [3, 0] with weights of 2 in all, memory [1, 4] with 2 w z = 1: (2 [3, 0] + [1, 4]) / (2 + 1)."""
    tensors = by_hand("linear", "joint")
    # phi(q) = [sqrt(2) / 2, sqrt(2) / 2], w = 2: each column of the state counts sqrt(2) times its sum.
    state = torch.tensor([[1.0, 4.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)[None, None] / 2**0.5
    zero, window = 1 / 3, 2 / 3  # the key of score zero, and the window, with weights of 1 and 2
    output = window * torch.tensor([3.0, 0.0], dtype=torch.float64)[None, None, None]
    shares = torch.tensor([zero, window], dtype=torch.float64)[None, None, None]
    found = read_memory(tensors, state, torch.zeros(1, 1, 1, 2, dtype=torch.float64), output, shares)
    assert_close(found[0, 0, 0], torch.tensor([7 / 3, 4 / 3], dtype=torch.float64))


@pytest.mark.parametrize(
    ("implementation", "kind", "scale", "tolerance"),
    [
        *[("sdpa", kind, scale, 1e-12) for kind in ("none", "seen", "added") for scale in (0.1, 30.0, -30.0)],
        *[("eager", kind, 3.0, 1e-5) for kind in ("none", "added")],  # its softmax is in fp32
    ],
)
def test_the_share_of_the_window(implementation, kind, scale, tolerance):
    """Against the sums themselves, with scores of any size, and with columns that are hidden from some rows."""
    model: Any = make(dtype=torch.float64)
    module = model.base_model.model.model.layers[0].self_attn
    run = ALL_ATTENTION_FUNCTIONS["sdpa"] if implementation == "sdpa" else eager_attention_forward
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5  # noqa: E731
    query, key, value = draw(2, 4, 1, 8), scale * draw(2, 2, 5, 8), draw(2, 2, 5, 8)
    seen = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    added = torch.zeros(2, 1, 1, 5, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    mask = {"none": None, "seen": seen, "added": added}[kind]
    output, shares, _ = attention_with_share(run, module, query, key, value, mask, scaling=0.5)
    scores = 0.5 * query @ key.repeat_interleave(2, dim=1).mT
    weights = scores.exp() * (1.0 if mask is None else seen)
    mass = weights.sum(dim=-1).mT  # [B, 1, Q]
    window = (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2)
    torch.testing.assert_close(output, window / (1 + mass)[..., None], rtol=tolerance, atol=0)
    torch.testing.assert_close(shares[..., 0], 1 / (1 + mass), rtol=tolerance, atol=0)
    torch.testing.assert_close(shares[..., 1], mass / (1 + mass), rtol=tolerance, atol=0)


def test_a_mask_that_is_no_tensor_is_refused():
    module, tensor = torch.nn.Identity(), torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="memory_read='joint' cannot add a key to a mask of type object"):
        attention_with_share(eager_attention_forward, module, tensor, tensor, tensor, object())
