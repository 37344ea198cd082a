"""The encoder's parameters: what is stored is the log of the write scale, and no parameter is without dimensions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import thoughtcache as tc
from support.compare import max_difference, padded
from support.models import adapt, tiny_base, tiny_model
from support.rollouts import PROMPTS
from thoughtcache.state import STATE_RULES, ThoughtEncoder, absorb
from thoughtcache.state.encoder import scalar_names

WRITE_SCALE = 0.3
# One token, G = R = K = 1, key 4 and value -2, so 1 and -1 when normalised: Q = 2 * 3, W_K k^ = 5, W_V v^ = -7.
# The state before is 0.5.
WRITTEN_BY_HAND = {
    "linear": 0.5 + WRITE_SCALE * 6 * 5 * -7,
    "decay": 0.5 / (1 + math.exp(-3)) + WRITE_SCALE * 6 * 5 * -7,
    "softmax": 0.5 + WRITE_SCALE * -7,  # the softmax over one token is 1
    "gated": 0.5 + WRITE_SCALE / (1 + WRITE_SCALE) * 6 * 5 * -1,  # sigmoid(log w) = w / (1 + w)
    "delta": 0.5 + WRITE_SCALE / (1 + WRITE_SCALE) * (6 * 5 - 0.5 * -1) * -1,
}


def test_every_rule_is_computed_by_hand():
    assert set(WRITTEN_BY_HAND) == set(STATE_RULES)


@pytest.mark.parametrize("rule", sorted(STATE_RULES))
def test_one_token_is_written_with_the_write_scale_that_was_given(rule):
    encoder = ThoughtEncoder(
        layer_index=0, kv_size=1, num_global_tokens=1, rank=1, rule=rule, write_scale=WRITE_SCALE, dtype=torch.float64
    )
    values = {"global_queries": 2.0, "query_projection": 3.0, "key_projection": 5.0, "value_projection": 7.0}
    with torch.no_grad():
        for name, value in values.items():
            encoder.get_parameter(name).fill_(value)
    key, value, state = (torch.full((1, 1, 1, 1), number, dtype=torch.float64) for number in (4.0, -2.0, 0.5))
    found = absorb(encoder.weights(), state[0], key, value, rule=rule, norm="none")
    assert found.item() == pytest.approx(WRITTEN_BY_HAND[rule], rel=1e-5)  # the normalisation's epsilon is 1e-6


@pytest.mark.parametrize("write_scale", [0.1, 1.0, 2.5])
def test_the_configuration_gives_the_write_scale_itself(write_scale):
    model = adapt(tiny_base(), randomise=False, write_scale=write_scale)
    encoders = model.base_model.encoders()
    assert [encoder.weights().log_write_scale.exp().item() for encoder in encoders] == pytest.approx([write_scale] * 2)


@pytest.mark.parametrize("rule", sorted(STATE_RULES))
def test_no_parameter_is_without_dimensions(rule):
    shapes = {name: tuple(p.shape) for name, p in tiny_model(state_rule=rule).named_parameters()}
    assert not [name for name, shape in shapes.items() if shape == ()]
    scalars = {name.rpartition(".")[2] for name, shape in shapes.items() if shape == (1,)}
    assert scalars <= scalar_names()
    assert "log_write_scale" in scalars


@pytest.mark.parametrize("rule", ["gated", "decay"])
def test_an_adapter_that_was_saved_with_scalars_without_dimensions_loads(rule, tmp_path):
    model = tiny_model(state_rule=rule, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in scalar_names():
                parameter.add_(0.25)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=12)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    old = {
        name: t.reshape(()) if name.rpartition(".")[2] in scalar_names() else t for name, t in load_file(file).items()
    }
    assert sum(tensor.ndim == 0 for tensor in old.values()) >= 4
    save_file(old, file)
    again = PeftModel.from_pretrained(tiny_base(dtype=torch.float32), tmp_path)
    assert max_difference(tc.replay(again, rollouts).logprobs, padded(rollouts)) < 1e-5
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("rule", ["gated", "decay"])
def test_fsdp_accepts_the_parameters_and_the_encoder_says_that_it_must_be_whole(rule, one_process):
    """torch's FSDP refuses parameters without dimensions by name."""
    model, ids = tiny_model(state_rule=rule), torch.tensor([PROMPTS[0][:6]])  # one token and a window
    expected = model(ids).logits
    whole = {p for name, p in model.named_parameters() if "lora_thought_encoder" in name}
    for ignored, error in ((whole, None), (set(), "ignored_params for the parameters named lora_thought_encoder")):
        sharded = copy.deepcopy(model)
        kept = {p for name, p in sharded.named_parameters() if "lora_thought_encoder" in name} if ignored else set()
        for layer in sharded.base_model.backbone.layers:
            fully_shard(layer, mesh=one_process, ignored_params=kept)
        fully_shard(sharded, mesh=one_process, ignored_params=kept)
        if error is None:
            assert max_difference(sharded(ids).logits, expected) < 1e-12
        else:
            with pytest.raises(ValueError, match=error):
                sharded(ids)
