"""A learning rate of its own for what writes and reads the states: in recall, distillation and GRPO."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.grpo import base_with_eos, make_trainer
from support.models import adapt, tiny_base
from thoughtcache.adapter.state_parameters import is_of_states
from thoughtcache.train.memory_rate import set_memory_rate

MEMORIES: list[dict[str, Any]] = [{}, {"memory": "attention", "memory_features": 6}, {"memory": "both"}]


def rates(optimizer: torch.optim.Optimizer, model: Any) -> dict[str, float]:
    """The learning rate of every parameter that is trained."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_parameter_has_its_rate(memory):
    model = adapt(tiny_base(), window=5, **memory)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    set_memory_rate(optimizer, model, None)
    assert set(rates(optimizer, model).values()) == {0.1}
    set_memory_rate(optimizer, model, 0.5)
    found = rates(optimizer, model)
    assert found == {
        name: 0.5 if is_of_states(name) else 0.1 for name, p in model.named_parameters() if p.requires_grad
    }
    assert {0.1, 0.5} == set(found.values())
    assert is_of_states(next(name for name, rate in found.items() if rate == 0.5))
    assert all("lora_A" in name or "lora_B" in name for name, rate in found.items() if rate == 0.1)


def test_a_rate_for_nothing_is_refused():
    lora = adapt(tiny_base(), initial_state="identity", absorb=False, num_global_tokens=3)
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ValueError, match=r"memory_learning_rate=0\.5 changes nothing"):
        set_memory_rate(optimizer, lora, 0.5)
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="memory_learning_rate must be positive"):
            tc.DistillConfig(output_dir="nowhere", memory_learning_rate=rate)


@pytest.mark.parametrize("memory", MEMORIES[:2])
def test_grpo_has_both_rates(memory, tmp_path):
    model = adapt(base_with_eos(), window=6, **memory)
    trainer = make_trainer(model, tmp_path, learning_rate=1e-3, memory_learning_rate=1e-1)
    trainer.train()
    for name, rate in rates(trainer.optimizer, trainer.model).items():
        # The schedule has ended: both are multiplied by the same.
        initial = {id(p): group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
        parameter = dict(trainer.model.named_parameters())[name]
        assert initial[id(parameter)] == (1e-1 if is_of_states(name) else 1e-3)
        assert rate / initial[id(parameter)] == pytest.approx(trainer.lr_scheduler.get_last_lr()[0] / 1e-3)


def test_distillation_goes_on_with_both_rates(tmp_path):
    """One run is the same as two parts of it, and the second rate matters."""

    def run(folder: str, **changes: Any) -> Any:
        torch.manual_seed(0)
        model = adapt(tiny_base(dtype=torch.float32), window=5, memory="attention", memory_features=6)
        settings = {"num_steps": 4, "batch_size": 2, "warmup_steps": 0, "max_new_tokens": 14, "save_every": 2}
        config = tc.DistillConfig(output_dir=str(tmp_path / folder), **{**settings, **changes})
        tc.distill(model, [[1, 2], [3]], config)
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    whole = run("whole", memory_learning_rate=5e-2)
    other = run("other")
    assert any(not torch.equal(whole[name], other[name]) for name in whole if is_of_states(name))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")
    again = run("parts", memory_learning_rate=5e-2, resume=True)
    for name, value in whole.items():
        assert torch.equal(again[name], value), name
