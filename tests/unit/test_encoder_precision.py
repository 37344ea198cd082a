"""Casting a model to half precision leaves its encoders as they are, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from support.models import tiny_model

CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to": lambda model: model.to(torch.bfloat16),
    "to with a device": lambda model: model.to("cpu", torch.float16),
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
}


def encoder_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "encoder" in name}


@pytest.mark.parametrize("name", CASTS)
def test_half_precision_of_a_model_stops_at_its_encoders(name: str) -> None:
    model = tiny_model(state_rule="delta").float()
    before = {key: parameter.detach().clone() for key, parameter in encoder_parameters(model).items()}
    for parameter in encoder_parameters(model).values():
        parameter.grad = torch.full_like(parameter, 1 / 3)
    CASTS[name](model)
    assert before
    for key, parameter in encoder_parameters(model).items():
        assert parameter.dtype == torch.float32, key
        assert torch.equal(parameter, before[key]), key
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, torch.full_like(before[key], 1 / 3))
    others = {p.dtype for key, p in model.named_parameters() if "encoder" not in key}
    assert others == {torch.float16 if name in ("half", "to with a device") else torch.bfloat16}


def test_encoders_follow_a_model_to_double_precision_and_to_another_device() -> None:
    model = tiny_model(state_rule="delta").float().to("meta", torch.float64)
    assert {(p.dtype, p.device.type) for p in encoder_parameters(model).values()} == {(torch.float64, "meta")}
    assert {p.dtype for p in encoder_parameters(model.half()).values()} == {torch.float32}
