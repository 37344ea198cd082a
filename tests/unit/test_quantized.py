"""4- and 8-bit bases through bitsandbytes: same path, state and encoder in fp32."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaForCausalLM

import thoughtcache as tc
from support.compare import max_difference, padded
from support.models import randomise_adapter, tiny_base
from thoughtcache.state.encoder import ENCODERS

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")

PROMPTS = [[1, 5, 6], [7, 8, 9, 10]]
# 4 bit: weights are quantised, activations are not, so fp32 rounding remains. 8 bit: activations are quantised row by
# row (int8), and a rounding difference can move a value to the next of 256 levels.
# The sizes of 4 bit, and training mode below: on CPUs with bfloat16 units and in evaluation mode, bitsandbytes packs
# the weights (whole blocks of 64 columns and 32 rows), multiplies in bfloat16 and has no gradient for it.
SETTINGS = {
    "4 bit": (
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
        {"hidden_size": 64, "intermediate_size": 128},
        1e-5,
    ),
    "8 bit": ({"load_in_8bit": True}, {}, 3e-2),
}


@pytest.fixture(params=SETTINGS, ids=list(SETTINGS))
def quantised(request: pytest.FixtureRequest, tmp_path: Path):
    options, sizes, tolerance = SETTINGS[request.param]
    tiny_base(dtype=torch.float32, **sizes).save_pretrained(tmp_path / "base")

    def load() -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32
        )

    model = peft.get_peft_model(load(), tc.ThoughtConfig(r=4, num_global_tokens=3, window=6, state_rule="gated"))
    randomise_adapter(model)
    return load, model.train(), tolerance


def test_sampling_replay_and_reload(quantised, tmp_path: Path) -> None:
    load, model, tolerance = quantised
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if ENCODERS in name)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=20, ignore_eos=True)
    assert len(rollouts[0].evictions) == 7
    scored = tc.replay(model, rollouts)
    assert max_difference(scored.logprobs, padded(rollouts)) < tolerance
    scored.logprobs.sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if ENCODERS in name]
    assert all(gradient is not None for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    with model.disable_adapter(), torch.no_grad():
        assert max_difference(tc.replay(model, rollouts).logprobs, scored.logprobs) > tolerance  # it does something
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(), tmp_path / "adapter").train()
    assert max_difference(tc.replay(again, rollouts).logprobs, scored.logprobs) < tolerance


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_torchao_before_and_after_wrapping(wrapped_first: bool) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    base = tiny_base(dtype=torch.float32, hidden_size=64, intermediate_size=128)

    def quantise(model: torch.nn.Module, ending: str) -> None:
        torchao.quantize_(
            model, torchao.Int8WeightOnlyConfig(), lambda m, name: type(m) is torch.nn.Linear and name.endswith(ending)
        )

    if not wrapped_first:
        quantise(base, "_proj")
    model = peft.get_peft_model(base, tc.ThoughtConfig(r=4, num_global_tokens=3, window=6, state_rule="gated"))
    if wrapped_first:
        quantise(model, "_proj.base_layer")
    randomise_adapter(model)
    kept = {type(m.base_layer.weight).__name__ for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert kept == {"Int8Tensor"}
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=20, ignore_eos=True)
    scored = tc.replay(model, rollouts)
    assert max_difference(scored.logprobs, padded(rollouts)) < 1e-5  # activations are not quantised
    scored.logprobs.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ENCODERS in name)


def test_a_start_from_weights_that_are_quantised_is_refused(quantised) -> None:
    load, _, _ = quantised
    with pytest.raises(ValueError, match=r"self_attn.k_proj, and that of this base is quantised .*Linear.*bit"):
        peft.get_peft_model(load(), tc.ThoughtConfig(r=4, num_global_tokens=3, window=6, encoder_start="base"))
