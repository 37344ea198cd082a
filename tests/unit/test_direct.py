"""Adapted linears that run directly compute what PEFT's do, to the bit, and leave nothing behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear

import thoughtcache as tc
from support.models import tiny_base, tiny_model
from thoughtcache.sampler.weights.direct_linears import direct_linears


def linears(model: Any) -> list[Linear]:
    """All adapted linears."""
    return [module for module in model.modules() if isinstance(module, Linear)]


def outputs(model: Any, states: Any = None) -> torch.Tensor:
    """Of every adapted linear by itself, with these states, and of the model."""
    tokens = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    found = []
    with torch.no_grad(), model.base_model.binding.bound(states):
        for module in linears(model):
            rows = torch.linspace(-1, 1, module.in_features * 2).view(2, 1, -1)
            found.append(module(rows.to(module.get_base_layer().weight.dtype)).flatten())
        return torch.cat([*found, model(tokens).logits.flatten()])


CASES = {
    "fp64": lambda: tiny_model(r=3, num_global_tokens=5),
    "fp32": lambda: tiny_model(dtype=torch.float32),
    "fp32 adapter on a bf16 base": lambda: adapted(torch.bfloat16),
    "identity": lambda: tiny_model(initial_state="identity", absorb=False, r=5),
}


def adapted(base_dtype: torch.dtype) -> Any:
    """With PEFT's own choice of dtypes, and an adapter that does something."""
    model = peft.get_peft_model(
        tiny_base(dtype=base_dtype), tc.ThoughtConfig(r=4, num_global_tokens=4, window=4)
    ).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits(case: str) -> None:
    model = CASES[case]()
    initial = model.base_model.initial_states()
    states = None if initial is None else [torch.cat([state, 2 * state]) for state in initial]
    expected = outputs(model, states)
    with direct_linears(model):
        assert all("forward" in vars(module) for module in linears(model))
        found = outputs(model, states)
    assert torch.equal(found, expected)
    assert not any("forward" in vars(module) for module in linears(model))


def test_peft_is_back_after_an_error() -> None:
    model = tiny_model()
    with pytest.raises(RuntimeError, match="in the middle"), direct_linears(model):
        raise RuntimeError("in the middle")
    assert not any("forward" in vars(module) for module in linears(model))


def test_what_is_not_plain_keeps_its_way() -> None:
    model = tiny_model(r=4, num_global_tokens=4)
    hooked, inner, merely_lora = linears(model)[:3]
    seen = []
    hooked.register_forward_hook(lambda *_: seen.append("module"))
    inner.lora_A["default"].register_forward_hook(lambda *_: seen.append("down"))
    merely_lora.lora_variant.clear()
    with direct_linears(model):
        direct = ["forward" in vars(module) for module in linears(model)]
        outputs(model, model.base_model.initial_states())
    assert direct[:3] == [True, False, False]
    assert all(direct[3:])
    assert set(seen) == {"module", "down"}


def test_a_forward_of_somebody_else_stays() -> None:
    """As accelerate's, which brings weights to the device when they are needed."""
    model = tiny_model(r=4, num_global_tokens=4)
    linear, inner = linears(model)[:2]
    down = inner.lora_A["default"]
    theirs = [partial(type(module).forward, module) for module in (linear, down)]
    linear.forward, down.forward = theirs
    with direct_linears(model):
        direct = ["forward" in vars(module) for module in linears(model)]
        assert linear.forward is theirs[0]
    assert direct[1] is False
    assert all(direct[2:])
    assert linear.forward is theirs[0]
    assert down.forward is theirs[1]


def test_without_the_adapter_nothing_is_direct() -> None:
    model = tiny_model()
    with model.disable_adapter(), direct_linears(model):
        assert not any("forward" in vars(module) for module in linears(model))
    with direct_linears(tiny_base()):
        pass
