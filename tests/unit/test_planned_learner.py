"""Trainers take what the planner chooses, print it, write it down, and come to the same numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.grpo import base_with_eos, make_trainer
from support.models import adapt
from thoughtcache.learner.options import SAVINGS
from thoughtcache.planning.savings import Savings
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.train import distill as distillation
from thoughtcache.train import savings
from thoughtcache.train.trl import planned_learner

TIGHT = {"checkpoint_layers": True, "chunk_tokens": 256, "kv_log": "device"}
LENGTHS: dict[str, Any] = {"prompt_tokens": 4, "max_new_tokens": 12, "batch": 2, "group": 2}


def adapted() -> Any:
    return adapt(base_with_eos(dtype=torch.float64), evict_fraction=0.4)


def trained(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    model = adapted()
    make_trainer(model, folder, **changes).train()
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def test_a_model_in_memory_is_planned() -> None:
    options = tc.ThoughtGRPOConfig(output_dir="", use_cpu=True, report_to="none").replay_options
    assert savings.available_to(adapted()) is None
    assert savings.choose_for(adapted(), options, SAVINGS, None, **LENGTHS) == Savings()
    assert savings.choose_for(adapted(), options, SAVINGS, 1, **LENGTHS) == Savings(**TIGHT)
    assert savings.choose_for(adapted(), options, (), 1, **LENGTHS) == Savings()


def test_grpo_trains_with_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a device without room: everything is saved. The weights are those of a run that saves nothing, to rounding."""
    plain = trained(tmp_path / "plain")
    assert "checkpoint_layers False, chunk_tokens 256, kv_log device: chosen by the planner" in capsys.readouterr().out
    assert json.loads((tmp_path / "plain" / savings.LEARNER_FILE).read_text()) == {
        "checkpoint_layers": False, "chunk_tokens": 256, "kv_log": "device",
    }  # fmt: skip
    monkeypatch.setattr(planned_learner, "available_to", lambda model: 1)
    saved = trained(tmp_path / "saved")
    assert capsys.readouterr().out.count("chosen by the planner") == 1
    assert json.loads((tmp_path / "saved" / savings.LEARNER_FILE).read_text()) == TIGHT
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-6, atol=1e-9)


def test_what_is_given_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planned_learner, "available_to", lambda model: 1)
    given = make_trainer(adapted(), tmp_path, checkpoint_layers=False, chunk_tokens=3, kv_log="device")
    given._learner.look_at([[1, 2, 3]])
    assert (given._learner.options.checkpoint_layers, given._learner.options.chunk_tokens) == (False, 3)
    everything_kept = make_trainer(adapted(), tmp_path, recompute=False)
    everything_kept._learner.look_at([[1, 2, 3]])
    assert not everything_kept._learner.options.checkpoint_layers
    assert "planner" not in capsys.readouterr().out
    assert not (tmp_path / savings.LEARNER_FILE).exists()


def test_the_line_names_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(adapted(), tmp_path, chunk_tokens=3)._learner.look_at([[1, 2, 3]])
    config = tc.DistillConfig(output_dir=str(tmp_path), num_steps=1, batch_size=1, max_new_tokens=14, kv_log="device")
    tc.distill(adapted(), [[3, 4, 5]], config)
    lines = [line for line in capsys.readouterr().out.splitlines() if "planner" in line]
    assert lines == [
        "learner: checkpoint_layers False, kv_log device: chosen by the planner",
        "learner: checkpoint_layers False, chunk_tokens 256, micro_batch_size 1: chosen by the planner",
    ]


def test_longer_prompts_are_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def choose(*arguments: Any, prompt_tokens: int, **planned: Any) -> Savings:
        seen.append(prompt_tokens)
        return Savings(checkpoint_layers=prompt_tokens > 3)

    monkeypatch.setattr(planned_learner, "choose_for", choose)
    learner = make_trainer(adapted(), tmp_path)._learner
    for prompts, checkpoints in (([[1] * 3, [1]], False), ([[1] * 2], False), ([[1] * 5], True)):
        learner.look_at(prompts)
        assert learner.options.checkpoint_layers is checkpoints
    assert seen == [3, 5]


def test_all_completions_of_a_generation_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their records wait for the learner, which takes a micro-batch at a time."""
    seen: dict[str, Any] = {}

    def choose(*arguments: Any, **planned: Any) -> Savings:
        seen.update(planned)
        return Savings()

    monkeypatch.setattr(planned_learner, "choose_for", choose)
    more = {"per_device_train_batch_size": 2, "num_generations": 2, "steps_per_generation": 4, "rollout_batch_size": 2}
    make_trainer(adapted(), tmp_path, reuse_rollout=True, **more)._learner.look_at([[1] * 3])
    assert (seen["batch"], seen["group"], seen["rollout_batch"], seen["generation_batch"]) == (2, 2, 2, 8)


def test_distillation_takes_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for available in (None, 1):
        monkeypatch.setattr(distillation, "available_to", lambda model, found=available: found)
        folder = tmp_path / str(available)
        config = tc.DistillConfig(
            output_dir=str(folder), num_steps=2, batch_size=2, max_new_tokens=14, log_every=1, warmup_steps=0
        )
        result = tc.distill(adapted(), [[3, 4, 5], [4, 5]], config)
        losses.append([record["loss"] for record in result.history if "loss" in record])
        assert f"micro_batch_size {1 if available == 1 else 2}: chosen by the planner" in capsys.readouterr().out
        written = json.loads((folder / savings.LEARNER_FILE).read_text())
        assert written["checkpoint_layers"] is (available == 1)
        assert written["micro_batch_size"] == (1 if available == 1 else 2)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("changes", [{"memory": "both"}, {"memory": "attention", "memory_read": "joint"}])
def test_every_memory_is_planned(changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step of distillation and one of GRPO, of adapters with both memories and with the joint read."""

    def fresh() -> Any:
        return adapt(base_with_eos(dtype=torch.float64), evict_fraction=0.4, memory_features=4, **changes)

    folder = tmp_path / "distill"
    config = tc.DistillConfig(
        output_dir=str(folder), num_steps=1, batch_size=2, max_new_tokens=14, log_every=1, warmup_steps=0
    )
    losses = [record["loss"] for record in tc.distill(fresh(), [[3, 4, 5], [4, 5]], config).history if "loss" in record]
    assert len(losses) == 1
    assert math.isfinite(losses[0])
    trainer = make_trainer(fresh(), tmp_path / "grpo", max_steps=1)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])
    assert capsys.readouterr().out.count("chosen by the planner") == 2
    for name, more in (("distill", {"micro_batch_size"}), ("grpo", set())):
        assert set(json.loads((tmp_path / name / savings.LEARNER_FILE).read_text())) == {*SAVINGS, *more}


def settings_of_a_run(kind: str, folder: Path, changes: dict[str, Any]) -> Any:
    if kind == "grpo":
        return tc.ThoughtGRPOConfig(output_dir=str(folder), use_cpu=True, report_to="none", **changes)
    # The tests' run-time type checks would refuse the text.
    run = tc.DistillConfig(output_dir=str(folder)) if kind == "distill" else RunConfig()
    for name, value in changes.items():
        object.__setattr__(run, name, value)
    run.__post_init__()
    return run


@pytest.mark.parametrize("kind", ["grpo", "distill", "run"])
def test_savings_may_be_text(kind: str, tmp_path: Path) -> None:
    """As from a file or a command line; text that is no saving is refused."""
    found = settings_of_a_run(kind, tmp_path, {"checkpoint_layers": "False", "chunk_tokens": "64", "kv_log": "host"})
    assert (found.checkpoint_layers, found.chunk_tokens, found.kv_log) == (False, 64, "host")
    found = settings_of_a_run(kind, tmp_path, {"checkpoint_layers": "true", "chunk_tokens": "none", "kv_log": "auto"})
    assert (found.checkpoint_layers, found.chunk_tokens, found.kv_log) == (True, None, "auto")
    assert settings_of_a_run(kind, tmp_path, {"checkpoint_layers": "Auto"}).checkpoint_layers == "auto"
    for name, value in (
        ("checkpoint_layers", "maybe"),
        ("checkpoint_layers", 1),
        ("chunk_tokens", "half"),
        ("chunk_tokens", True),
        ("chunk_tokens", 2.5),
        ("kv_log", "disk"),
        ("kv_log", None),
    ):
        with pytest.raises(ValueError, match=f'{name}={value!r} is not known; use "auto"'):
            settings_of_a_run(kind, tmp_path, {name: value})
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1 or None, got 0"):
        settings_of_a_run(kind, tmp_path, {"chunk_tokens": "0"})
