"""Where an adapter starts: `W_K` and `W_V` from the base's own projections, the zero factor at another scale."""

from __future__ import annotations

import math
from typing import Any

import peft
import pytest
import torch
from torch import nn

import thoughtcache as tc
from support.compare import assert_close, max_difference
from support.models import adapt, tiny_base, trainable
from support.rollouts import PROMPTS
from thoughtcache.adapter.state_parameters import base_weight
from thoughtcache.recipes.load_adapter import put_adapter, read_adapter
from thoughtcache.state.base_start import leading_directions

KV_SIZE = 8


def fresh(**config: Any) -> Any:
    return adapt(tiny_base(), randomise=False, **config)


def test_directions_of_a_weight_whose_singular_vectors_are_known() -> None:
    # Outputs 2 and 0 vary most; the second direction has its larger entry positive.
    weight = torch.zeros(3, 5)
    weight[2, 1], weight[0, 4], weight[1, 0] = 7.0, -4.0, 1.0
    found = leading_directions(weight, 2)
    assert_close(found / math.sqrt(3), torch.tensor([[0.0, 0, 1], [1, 0, 0]]), torch.float32)
    assert_close(found, leading_directions(-weight, 2), torch.float32)
    assert leading_directions(weight.bfloat16(), 2).dtype == torch.float32


@pytest.mark.parametrize("targets", ["all-linear", ["o_proj", "q_proj"]])
def test_the_encoder_starts_from_the_bases_own_projections(targets: Any) -> None:
    base = tiny_base()
    attention = [layer.self_attn for layer in base.model.layers]
    weights = [[one.k_proj.weight.detach(), one.v_proj.weight.detach()] for one in attention]
    model = adapt(base, randomise=False, encoder_start="base", target_modules=targets)
    for encoder, pair in zip(model.base_model.encoders(), weights, strict=True):
        tensors = encoder.weights()
        for kept, weight in zip((tensors.key_projection, tensors.value_projection), pair, strict=True):
            left, values, _ = torch.linalg.svd(weight)
            assert_close(kept @ kept.T, torch.eye(3).double())  # unit rows: the scale of the random start
            assert_close((kept @ left[:, :3]).abs(), torch.eye(3).double())
            assert_close((kept @ weight).norm(dim=1), values[:3])
    random = fresh(target_modules=targets)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, random.get_parameter(name))}
    assert {name.rpartition(".")[2] for name in changed} == {"key_projection", "value_projection"}, "the same seed"


def test_more_directions_than_there_are() -> None:
    with pytest.raises(ValueError, match="takes r=9 directions of keys and values, and the base model has 8; lower r"):
        fresh(encoder_start="base", r=9)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"qkv_proj": nn.Linear(16, 32)}, "self_attn.k_proj, and Module has no linear of that name.*'random'"),
        ({"k_proj": nn.Linear(16, KV_SIZE, device="meta")}, "on the meta device, without values; load the base"),
        ({"k_proj": nn.Embedding(KV_SIZE, 16)}, "quantised or sharded.*Embedding"),
        ({"k_proj": nn.Linear(16, 3)}, "quantised or sharded"),
    ],
    ids=["fused", "meta", "quantised", "shard"],
)
def test_a_base_whose_weights_cannot_be_read(attention: dict[str, nn.Module], message: str) -> None:
    layer = nn.Module()
    layer.add_module("self_attn", nn.Module())
    for name, module in attention.items():
        layer.get_submodule("self_attn").add_module(name, module)
    with pytest.raises(ValueError, match=message):
        base_weight(layer, "k_proj", KV_SIZE)


def test_a_saved_adapter_does_not_need_the_weights_it_started_from(tmp_path: Any, monkeypatch: Any) -> None:
    model = fresh(encoder_start="base")
    model.save_pretrained(tmp_path)

    def refuse(*args: Any) -> None:
        raise ValueError("read")

    monkeypatch.setattr("thoughtcache.adapter.state_parameters.base_weight", refuse)
    loaded = peft.PeftModel.from_pretrained(tiny_base(), tmp_path)
    config, weights = read_adapter(str(tmp_path))
    config.inference_mode = False
    base = tiny_base()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    put: Any = put_adapter(base, config, weights, folder="", model="")
    for again in (loaded, put):
        assert again.peft_config["default"].encoder_start == "base"
        for name, parameter in model.named_parameters():
            assert torch.equal(again.get_parameter(name), parameter), name
    with pytest.raises(ValueError, match="read"):
        fresh(encoder_start="base")


@pytest.mark.parametrize("ranks", [{"r": 3}, {"r": 5}])
@pytest.mark.parametrize(("draws", "scale"), [(True, 1 / math.sqrt(3 * 16)), ("gaussian", None)])
def test_the_factor_that_starts_at_zero_starts_at_the_scale_of_the_other(ranks: Any, draws: Any, scale: Any) -> None:
    model = fresh(read_start=0.5, init_lora_weights=draws, target_modules=["q_proj", "k_proj", "v_proj"], **ranks)
    drawn = torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_B" in name])
    expected = 0.5 * (scale or 1 / ranks["r"])
    assert drawn.std().item() == pytest.approx(expected, rel=0.2)
    if draws is True:
        assert drawn.abs().max() <= 0.5 / math.sqrt(16)
    zero = fresh(init_lora_weights=draws, **ranks)
    assert not any(p.count_nonzero() for name, p in zero.named_parameters() if "lora_B" in name)


def test_writes_have_a_gradient_from_the_first_step_and_the_base_is_whole_until_then() -> None:
    base, start = tiny_base(), {"initial_state": "zero", "read_start": 0.5}
    ids = torch.tensor([PROMPTS[0][:6]])
    expected = base(ids).logits
    model = adapt(base, randomise=False, **start)
    assert torch.equal(model(ids).logits, expected)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)
    window = adapt(tiny_base(), randomise=False, initial_state="identity", absorb=False, r=5)
    without = tc.replay(window, rollouts, anchored=False).logprobs
    found = tc.replay(model, rollouts).logprobs
    assert_close(found[:, :6], without[:, :6])
    assert max_difference(found[:, 6:], without[:, 6:]) > 1e-3
    for start_at_zero, one in ((False, model), (True, fresh(initial_state="zero"))):
        tc.replay(one, rollouts, anchored=False).logprobs.sum().backward()
        encoders = [p for name, p in trainable(one).items() if "projection" in name or "global_queries" in name]
        assert len(encoders) == 8
        assert all(bool(p.grad is None or not p.grad.count_nonzero()) == start_at_zero for p in encoders)


def test_an_initial_state_that_is_not_zero_makes_another_model_at_the_start() -> None:
    ids = torch.tensor([PROMPTS[0][:6]])
    expected = tiny_base()(ids).logits
    assert max_difference(fresh(read_start=0.5)(ids).logits, expected) > 1e-3
