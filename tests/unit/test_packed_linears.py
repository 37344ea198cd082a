"""Packed copies of large linears: the same products up to rounding, in sampling alone, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import thoughtcache as tc
from support.plans import cpu_setting
from thoughtcache.measuring.peak_memory import can_measure_resident_bytes
from thoughtcache.planning.memory.parts import highest, total
from thoughtcache.planning.memory.rollout import packed_bytes, rollout_parts
from thoughtcache.recipes.plan.measure import measure
from thoughtcache.recipes.plan.trace import with_layers
from thoughtcache.sampler.weights import packed_linears as packed

HAS_ONEDNN = torch.backends.mkldnn.is_available()
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN")
PREFIX = "lora_"
GAP = 1e-4
"""Nats, in fp32: rounding that comes back through the state."""
PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5]]


def wide_model(dtype: torch.dtype = torch.float32) -> Any:
    """Two layers, wide enough to be packed, whose adapter does something."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2,
        vocab_size=512, max_position_embeddings=128, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    thought = tc.ThoughtConfig(r=4, num_global_tokens=4, window=8)
    model = peft.get_peft_model(LlamaForCausalLM(config).to(dtype), thought).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def replaced(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is nn.Linear and "forward" in vars(module)]


@needs_onednn
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("bias", [False, True])
def test_the_same_products(dtype: torch.dtype, gap: float, rows: int, bias: bool) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bf16 in oneDNN")
    torch.manual_seed(0)
    linear = nn.Linear(256, 512, bias=bias, dtype=dtype)
    x = torch.randn(rows, 2, 256, dtype=dtype)
    with torch.no_grad():
        expected = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
        with packed.packed_linears(linear, PREFIX):
            assert "forward" in vars(linear)
            found = linear(x)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    scale = expected.abs().max()
    assert (found.double() - expected).abs().max() <= gap * scale
    assert "forward" not in vars(linear)


@needs_onednn
def test_the_large_linears_of_the_base_and_no_others() -> None:
    model = wide_model()
    tuner = model.base_model
    with packed.packed_linears(tuner.model, tuner.prefix):
        names = replaced(tuner.model)
        assert len(names) == 2 * 7 + 1
        assert not any(PREFIX in name for name in names)
    assert replaced(model) == []
    with pytest.raises(RuntimeError, match="in the middle"), packed.packed_linears(tuner.model, tuner.prefix):
        raise RuntimeError("in the middle")
    assert replaced(model) == []


@needs_onednn
def test_small_others_and_other_precisions_keep_their_way() -> None:
    class Own(nn.Linear):
        pass

    busy = nn.Linear(256, 256)
    busy.forward = lambda x: x
    kept = [nn.Linear(255, 256), nn.Linear(256, 256, dtype=torch.float64), Own(256, 256), busy]
    model = nn.ModuleList([*kept, nn.Linear(256, 256)])
    with packed.packed_linears(model, PREFIX):
        assert ["forward" in vars(module) for module in model] == [False, False, False, True, True]
    assert "forward" in vars(busy)
    with torch.autocast("cpu", dtype=torch.bfloat16), packed.packed_linears(model, PREFIX):
        assert "forward" not in vars(model[-1])


@needs_onednn
@pytest.mark.parametrize("adapter", [True, False])
def test_a_rollout_packs_and_gives_the_same_policy(adapter: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide_model()
    seen: list[int] = []
    model.base_model.backbone.register_forward_hook(lambda *_: seen.append(len(replaced(model))))

    def sample(**options: Any) -> list[tc.Rollout]:
        seen.clear()
        return tc.rollout(model, PROMPTS, max_new_tokens=24, **options)

    if adapter:
        found = sample()
        assert set(seen) == {15}
        plain = sample(pack_weights=False)
        assert set(seen) == {0}
        replayed = tc.replay(model, found).logprobs
        for row, rollout in enumerate(found):
            assert torch.allclose(replayed[row, :24], rollout.logprobs, atol=GAP)
    else:
        with model.disable_adapter():
            found, plain = sample(), sample(pack_weights=False)
    for one, other in zip(found, plain, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.allclose(one.logprobs, other.logprobs, atol=GAP)


@needs_onednn
@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"max_new_tokens": packed.PAYS_FROM - 1}], ids=["one slot", "few tokens"]
)
def test_what_would_not_pay_is_not_packed(options: dict[str, int]) -> None:
    model = wide_model()
    seen: list[int] = []
    model.base_model.backbone.register_forward_hook(lambda *_: seen.append(len(replaced(model))))
    tc.rollout(model, PROMPTS, **{"max_new_tokens": packed.PAYS_FROM, **options})
    assert set(seen) == {0}


def test_the_plan_counts_the_copy() -> None:
    setting = cpu_setting("smollm2", max_new_tokens=64)
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    assert packed_bytes(setting) == 4 * (4 * layer + 49152 * 576)
    for other in (
        {"pack_weights": False},
        {"device_type": "cuda"},
        {"max_new_tokens": packed.PAYS_FROM - 1},
        {"batch": 1, "group": 1},
        {"dtype": "float16"},
        {"learner": "checkpointed"},
    ):
        assert packed_bytes(replace(setting, **other)) == 0, other
    assert packed_bytes(replace(setting, load_in_4bit=True)) == 4 * 49152 * 576


@needs_onednn
@pytest.mark.skipif(not can_measure_resident_bytes(), reason="no /proc on this system")
def test_the_plan_against_a_run() -> None:
    setting = with_layers(cpu_setting("smollm2", max_new_tokens=packed.PAYS_FROM, batch=32, group=32), 2)
    closed = total(highest(rollout_parts(setting).values()))
    assert packed_bytes(setting) > closed / 2
    assert closed == pytest.approx(measure(setting, "rollout").peak_bytes, rel=0.1)
