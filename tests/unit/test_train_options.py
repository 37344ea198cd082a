"""What a run on a user's model is asked for beside its adapter: temperature, schedule, reports, which questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import load_peft_weights
from rich.console import Console
from tests.support.text_model import save_questions, save_text_model
from transformers import TrainerCallback
from transformers.integrations import integration_utils

import thoughtcache as tc
from thoughtcache.recipes import real_model
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.train import rewards
from thoughtcache.train.trainer_options import reports
from thoughtcache.train.trainer_options.schedules import SCHEDULERS, WITH_MINIMUM, schedule


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_text_model(folder / "model")
    save_questions(folder / "questions.jsonl")
    return folder


SMALL: dict[str, Any] = {
    "max_new_tokens": 9, "distill_steps": 3, "distill_batch_size": 2, "grpo_steps": 3, "group_size": 2,
    "grpo_batch_size": 2, "held_out": 0,
}  # fmt: skip


def train(user: Path, output: Path, **changes: Any) -> dict[str, Any]:
    own = {"model": str(user / "model"), "dataset": str(user / "questions.jsonl"), "output_dir": str(output)}
    settings = {**SMALL, **own}
    thought = tc.ThoughtConfig(r=3, num_global_tokens=5, window=4)
    return run_real_model(RunConfig(**{**settings, **changes}), thought, Console(quiet=True))


def test_a_temperature_is_that_of_the_teacher_and_of_grpo(user: Path, tmp_path: Path) -> None:
    """Near 0 all completions to a question are the greedy one, and the teacher's samples are as well."""
    train(user, tmp_path / "cold", temperature=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "cold" / "grpo" / "rollouts.jsonl").read_text().splitlines()]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["completion"] == second["completion"]
    train(user, tmp_path / "warm")
    cold, warm = ((tmp_path / name / "phases" / "teacher.samples").read_bytes() for name in ("cold", "warm"))
    assert cold != warm
    with pytest.raises(ValueError, match=r"other settings \(temperature\)"):
        train(user, tmp_path / "cold", temperature=0.5, resume=True)


def test_a_schedule_moves_the_learning_rate_of_both_phases(user: Path, tmp_path: Path) -> None:
    train(user, tmp_path, learning_rate_scheduler="constant", save_every=3)
    for phase, rate in (("distill", 1e-3), ("grpo", 1e-5)):
        state = json.loads((tmp_path / phase / "checkpoint-3" / "trainer_state.json").read_text())
        rates = [record["learning_rate"] for record in state["log_history"] if "learning_rate" in record]
        assert rates == [rate] * 3


RATES = {
    "linear": [0, 1, 2 / 3, 1 / 3, 0],
    "cosine": [0, 1, 0.75, 0.25, 0],
    "cosine_with_restarts": [0, 1, 0.75, 0.25, 0],  # transformers' default is one cycle
    "polynomial": [0, 1, 2 / 3, 1 / 3, 0],
    "constant": [1, 1, 1, 1, 1],
    "constant_with_warmup": [0, 1, 1, 1, 1],
    "inverse_sqrt": [0, 1, 2**-0.5, 3**-0.5, 0.5],
    WITH_MINIMUM: [0, 1, 0.05 + 0.95 * 0.75, 0.05 + 0.95 * 0.25, 0.05],
}
"""Learning rates of four steps and the end, of which one warms up; cosines are those of 0, 60, 120 and 180 degrees."""


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_moves_the_rate_as_its_name_says(name: str) -> None:
    import torch
    from transformers import TrainingArguments, get_scheduler

    arguments = TrainingArguments(output_dir="none", **schedule(name))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    made = get_scheduler(
        arguments.lr_scheduler_type, optimizer, 1, 4, scheduler_specific_kwargs=arguments.lr_scheduler_kwargs
    )
    rates = made.get_last_lr()
    for _ in range(4):
        optimizer.step()
        made.step()
        rates += made.get_last_lr()
    assert rates == pytest.approx(RATES[name], abs=2e-7)  # a polynomial ends at 1e-7


def test_every_phase_has_a_run_of_wandb_and_one_of_the_caller_stays_open(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers begins a run only where there is none, and ends none."""
    wandb: Any = SimpleNamespace(run=None)
    wandb.finish = lambda: setattr(wandb, "run", None)
    logged: set[tuple[str, str]] = set()

    class Report(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            wandb.run = wandb.run or SimpleNamespace(name=args.run_name)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.update((wandb.run.name, name) for name in logs if name in ("loss", "reward"))

    monkeypatch.setattr(reports, "sys", SimpleNamespace(modules={"wandb": wandb}))  # other libraries do not see it
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Report)
    monkeypatch.setitem(reports.AVAILABLE, "wandb", lambda: True)
    train(user, tmp_path / "mine", report_to="wandb")
    assert wandb.run is None
    assert {("mine-distill", "loss"), ("mine-grpo", "reward")} <= logged
    assert ("mine-distill", "reward") not in logged
    logged.clear()
    wandb.run = own = SimpleNamespace(name="the caller's")
    train(user, tmp_path / "other", report_to="wandb")
    assert wandb.run is own
    assert {run for run, _ in logged} == {"the caller's"}


def test_a_run_of_an_earlier_version_goes_on(user: Path, tmp_path: Path) -> None:
    """Before there were questions that are held out, all were trained on."""
    train(user, tmp_path, grpo_steps=1, distill_steps=0, save_every=1)
    stored = json.loads((tmp_path / "run.json").read_text())
    for name in ("temperature", "reward", "held_out", "gradient_accumulation"):
        del stored[name]
    del stored["thought"]["encoder_start"]
    (tmp_path / "run.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="held_out=0 then, held_out=None now"):
        train(user, tmp_path, grpo_steps=2, distill_steps=0, save_every=1, resume=True, held_out=None)
    assert train(user, tmp_path, grpo_steps=2, distill_steps=0, save_every=1, resume=True)["phases"]["grpo"]["rewards"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize(
    "name", ["distill_learning_rate", "grpo_learning_rate", "grpo_memory_learning_rate", "beta", "temperature"]
)
def test_numbers_that_would_spoil_the_weights_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be (0 or )?positive, got {value:g}"):
        RunConfig(**{name: value})


def test_a_report_gets_the_logs_of_both_phases(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str | None, set[str]]] = []

    class Report(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            told.append((args.run_name, set(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Report)
    monkeypatch.setitem(reports.AVAILABLE, "trackio", lambda: True)
    train(user, tmp_path / "mine", report_to="trackio")
    assert any(name == "mine-distill" and "loss" in keys for name, keys in told)
    assert any(name == "mine-grpo" and "reward" in keys for name, keys in told)
    told.clear()
    train(user, tmp_path / "other")
    assert told == []


def test_a_missing_report_is_refused_before_anything_is_read(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reports.AVAILABLE, "wandb", lambda: False)
    with pytest.raises(ValueError, match=r"report_to=wandb needs .* pip install wandb"):
        train(user, tmp_path, dataset="none.jsonl", report_to="wandb")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="pip install wandb"):
        tc.DistillConfig(output_dir="none", report_to="wandb")


def test_long_prompts_are_left_out_and_counted(user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts are one to four words between two other tokens."""
    settings = {"max_prompt_tokens": 5, "grpo_steps": 1, "distill_steps": 0, "dataset": str(user / "questions.jsonl")}
    run = RunConfig(**{**SMALL, **settings, "model": str(user / "model"), "output_dir": str(tmp_path)})
    run_real_model(run, tc.ThoughtConfig(r=3, num_global_tokens=5, window=4), Console(width=200))
    assert "left out 1 of 6 questions, whose prompts are longer than 5 tokens (the longest has 6)" in (
        capsys.readouterr().out
    )
    assert json.loads((tmp_path / "run.json").read_text())["max_prompt_tokens"] == 5


def test_micro_batches_below_a_group_take_the_step_of_the_whole_batch(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same completions and, up to rounding, the same adapter."""

    def ends_early(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    monkeypatch.setattr(rewards, "math_correctness", ends_early)
    settings = {
        "group_size": 4,
        "grpo_batch_size": 4,
        "grpo_learning_rate": 1e-2,
        "grpo_steps": 1,
        "max_new_tokens": 12,
    }
    for name, count in (("whole", 1), ("split", 4)):
        train(user, tmp_path / name, gradient_accumulation=count, **settings)
    start = load_peft_weights(str(tmp_path / "whole" / "distill" / "adapter"), device="cpu")
    whole, split = (load_peft_weights(str(tmp_path / n / "adapter"), device="cpu") for n in ("whole", "split"))
    moved = sum(float((whole[name] - start[name]).square().sum()) for name in whole) ** 0.5
    apart = sum(float((whole[name] - split[name]).square().sum()) for name in whole) ** 0.5
    assert moved > 1e-2
    assert apart < 1e-2 * moved
    lines = [(tmp_path / n / "grpo" / "rollouts.jsonl").read_text().splitlines() for n in ("whole", "split")]
    first, second = ([json.loads(line)["completion"] for line in own] for own in lines)
    assert len(first) == 4
    assert sorted(first) == sorted(second)


def test_a_dry_run_shows_prompts_and_plan_and_writes_nothing(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(real_model, "adapted_model", refuse)
    own = {"model": str(user / "model"), "dataset": str(user / "questions.jsonl"), "output_dir": str(tmp_path / "none")}
    run = RunConfig(**{**SMALL, **own}, instruction="w7 w8", dry_run=True)
    shown = run_real_model(run, tc.ThoughtConfig(r=3, num_global_tokens=5, window=4), Console(width=200))
    assert not (tmp_path / "none").exists()
    assert len(shown["prompts"]) == 3
    assert all("w7 w8" in text for text in shown["prompts"])
    assert set(shown["planned_bytes"]) == {"distillation", "GRPO"}
    printed = capsys.readouterr().out
    for text in (
        *shown["prompts"],
        "6 questions to train on, prompts of",
        "answer '0'",
        "memory by phase",
        "dry run: nothing was",
    ):
        assert text in printed
    with pytest.raises(AssertionError, match="weights were read"):
        run_real_model(replace(run, dry_run=False), tc.ThoughtConfig(r=3, window=4), Console(quiet=True))
    with pytest.raises(ValueError, match="the embedded job has its own; add --model"):
        RunConfig(dry_run=True)
    with pytest.raises(ValueError, match="quick=True shortens the embedded job"):
        RunConfig(**own, quick=True)
