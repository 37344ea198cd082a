"""`thoughtcache distill`: recipes are read and refused, stages run in turn and go on, and each one is measured."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import thoughtcache as tc
from support.text_model import save_passcode_model, save_text
from thoughtcache.recipes.distill import run as distill_run
from thoughtcache.recipes.distill.config import DistillRun
from thoughtcache.recipes.distill.recipe import RECIPES, Stage, read_recipe
from thoughtcache.recipes.distill.run import run_distill
from thoughtcache.recipes.export.measured import measured_rows
from thoughtcache.recipes.export.run_record import find_record
from thoughtcache.recipes.export.training import training_rows
from thoughtcache.recipes.load_adapter import read_adapter
from thoughtcache.recipes.teacher_samples import kept_samples
from thoughtcache.studies.held_out import summary
from thoughtcache_cli import main

STAGES = """
[[stage]]
kind = "transfer"
num_steps = 2
warmup_steps = 1
batch_size = 2

[[stage]]
kind = "recall"
num_steps = 2
warmup_steps = 1
batch_size = 2
code_length = 2
max_evictions = 2

[[stage]]
kind = "logits"
num_steps = 2
batch_size = 2
betas = [0.9, 0.99]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_passcode_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return save_text(tmp_path / "text.txt", 300)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(STAGES)
    return file


def run_of(model: str, output: Path, **changes: Any) -> DistillRun:
    few = {"num_texts": 7, "held_out": 2, "prompt_tokens": 4, "max_new_tokens": 24, "save_every": 1}
    return DistillRun(**{"model": model, "output_dir": str(output), **few, **changes})


def thought(**changes: Any) -> tc.ThoughtConfig:
    settings = {"memory": "attention", "memory_features": 6, "r": 2, "window": 8, "evict_fraction": 0.25}
    return tc.ThoughtConfig(**{**settings, **changes})


@pytest.mark.parametrize("eviction", ["sliding", "h2o"])
def test_stages_run_in_turn_and_are_measured(model, text, recipe, tmp_path, eviction):
    console = Console(record=True, width=200, file=io.StringIO())
    run = run_of(model, tmp_path / "run", text=str(text), recipe=str(recipe))
    result = run_distill(run, thought(eviction=eviction), console)
    assert list(result["phases"]) == ["1-transfer", "2-recall", "3-logits"]
    assert [len(phase["losses"]) for phase in result["phases"].values()] == [2, 2, 2]
    assert [row["stage"] for row in result["held_out"]] == ["base, window", "start", *result["phases"]]
    assert all(len(row["by_text"]) == 2 and row["low"] <= row["after"] <= row["high"] for row in result["held_out"])
    assert len({row["after"] for row in result["held_out"]}) == 5  # a memory that was not trained changes something
    assert result["run"]["recipe"][2] == {"kind": "logits", "num_steps": 2, "batch_size": 2, "betas": [0.9, 0.99]}
    record = find_record(tmp_path / "run" / "adapter", None)
    rows = dict(training_rows(record))
    assert (rows["recipe"], rows["text"]) == ("transfer 2, recall 2, logits 2", "text.txt")
    assert (rows["stage"], record.stage) == ("the end of the run", "3-logits")
    assert len(measured_rows(record)[2]) == 5
    assert [row["arm"] for row in result["beside"]] == ["base, window 12, sliding", "base, window 12, h2o"]
    for row in result["beside"]:
        assert row["after"] < result["held_out"][0]["after"], "four slots more cost nothing less"
        gap = result["held_out"][-1]["after"] - row["after"]
        assert row["adapter_minus_this"]["mean"] == pytest.approx(gap)
        assert row["adapter_minus_this"]["low"] < gap < row["adapter_minus_this"]["high"]
    shown = console.export_text()
    assert "won back" in shown
    assert "adapter minus this" in shown
    assert "3-logits" in shown
    assert json.loads((tmp_path / "run" / "results.json").read_text())["held_out"][1]["stage"] == "start"
    assert (tmp_path / "run" / "distill.png").stat().st_size > 10_000
    _, last = read_adapter(str(tmp_path / "run" / "adapter"))
    _, of_stage = read_adapter(str(tmp_path / "run" / "3-logits" / "adapter"))
    assert all(torch.equal(last[name], of_stage[name]) for name in last)


def test_the_command_is_the_run(model, text, recipe, tmp_path, capsys):
    options = ["--model", model, "--text", str(text), "--recipe", str(recipe), "--output-dir", str(tmp_path / "run")]
    sizes = ["--num-texts", "7", "--held-out", "2", "--prompt-tokens", "4", "--max-new-tokens", "24"]
    adapter = ["--memory", "attention", "--memory-features", "6", "--r", "2", "--window", "8"]
    assert main(["distill", *options, *sizes, *adapter]) == 0
    assert "KL to the base with its full cache" in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    same = run_distill(
        run_of(model, tmp_path / "same", text=str(text), recipe=str(recipe)), thought(), Console(quiet=True)
    )
    assert written["held_out"] == same["held_out"]
    assert main(["distill", *options, *sizes, *adapter]) != 0
    assert "add --resume to go on" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(model, text, recipe, tmp_path, monkeypatch):
    """And ends where one in one piece ends; finished stages are not run again."""
    settings = {"text": str(text), "recipe": str(recipe)}
    whole = run_distill(run_of(model, tmp_path / "whole", **settings), thought(), Console(quiet=True))
    transfers: list[str] = []
    transfer = distill_run.transfer_attention

    def counted(*args: Any, **kwargs: Any) -> Any:
        transfers.append("transfer")
        return transfer(*args, **kwargs)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(distill_run, "transfer_attention", counted)
    with monkeypatch.context() as patch:
        patch.setattr(distill_run, "teach_recall", broken)
        with pytest.raises(KeyboardInterrupt):
            run_distill(run_of(model, tmp_path / "parts", **settings), thought(), Console(quiet=True))
    resumed = run_of(model, tmp_path / "parts", **settings, resume=True)
    parts = run_distill(resumed, thought(), Console(quiet=True))
    assert transfers == ["transfer"]
    assert parts["held_out"] == whole["held_out"]
    other = run_of(model, tmp_path / "parts", text=str(text), recipe="memory", resume=True)
    with pytest.raises(ValueError, match="other settings"):
        run_distill(other, thought(), Console(quiet=True))


def test_the_base_answers_questions(model, tmp_path, monkeypatch):
    questions = tmp_path / "questions.jsonl"
    rows = ["The secret .", "words are", "The digits are .", "secret words", "are .", "The .", "digits"]
    questions.write_text("".join(json.dumps({"question": row}) + "\n" for row in rows))
    recipe = tmp_path / "logits.toml"
    recipe.write_text('[[stage]]\nkind = "logits"\nnum_steps = 1\nbatch_size = 2\n')
    run = run_of(model, tmp_path / "run", dataset=str(questions), recipe=str(recipe))
    budgets = tc.ThoughtConfig(r=2, num_global_tokens=2, window=8, eviction_budgets=[10, 6])
    with pytest.raises(ValueError, match=r"too short for window=8, whose layers hold \d thoughts"):
        run_distill(run_of(model, tmp_path / "c", text=str(text), max_new_tokens=7), budgets, Console(quiet=True))
    paper = tc.ThoughtConfig(r=2, num_global_tokens=2, window=8)
    console = Console(record=True, width=200, file=io.StringIO())
    result = run_distill(run, paper, console)
    assert "teacher: samples 7 texts at once: chosen by the planner (" in console.export_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["chosen"] == {"teacher_batch_size": 7}
    assert list(result["phases"]) == ["1-logits"]
    assert result["held_out"][0]["before"] == pytest.approx(0, abs=1e-5)
    assert result["held_out"][0]["after"] > 1e-4  # the base forgets what left
    assert result["held_out"][1]["after"] == pytest.approx(result["held_out"][0]["after"])  # nothing is adapted yet

    again = Console(record=True, width=200, file=io.StringIO())
    with monkeypatch.context() as patch:
        patch.setattr(distill_run, "fitted_teacher", None)  # all answers are there
        run_distill(dataclasses.replace(run, resume=True), tc.ThoughtConfig(r=2, num_global_tokens=2, window=8), again)
    assert "teacher: samples" not in again.export_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["chosen"] == {"teacher_batch_size": 7}

    bounded = dataclasses.replace(run, output_dir=str(tmp_path / "bounded"), teacher_cache={"window": 5})
    forgets = run_distill(bounded, paper, Console(quiet=True))
    assert forgets["held_out"][0]["before"] == pytest.approx(0, abs=1e-5), "the targets are the full cache's"
    samples = [tmp_path / name / "phases" / "texts.samples" for name in ("run", "bounded")]
    assert samples[0].read_bytes() != samples[1].read_bytes()

    shorter = run_of(model, tmp_path / "run", dataset=str(questions), recipe=str(recipe), max_new_tokens=15)
    other = run_distill(dataclasses.replace(shorter, overwrite=True), paper, Console(quiet=True))
    assert other["run"]["max_new_tokens"] == 15
    kept = kept_samples(tmp_path / "run" / "phases" / "texts.samples", 7, lambda start, stop: [])
    assert max(len(row.token_ids) for row in kept) == 15  # drawn anew, not taken from the older run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stage = 3", "must hold tables"),
        ("", "must hold tables .* got nothing"),
        (
            "[[stage]]\nkind = 'logit'",
            "stage 1: a stage of kind 'logit' is not known; the kinds are transfer",
        ),
        ("[[stage]]\nnum_steps = 3", "kind 'None' is not known"),
        (
            "[[stage]]\nkind = 'transfer'\nloss = 'forward_kl'",
            "kind 'transfer' has no setting 'loss'; it has batch",
        ),
        ("[[stage]]\nkind = 'logits'\nseed = 3", "has no setting 'seed'"),
        ("[[stage]]\nkind = 'logits'\nnum_steps = 0", "stage 1: num_steps must be at least 1"),
        ("[[stage]\nkind", "is no TOML file"),
        ("stage = [1]", "must hold tables"),
        ("stage = 'abc'", "must hold tables"),
        ("[[stage]]\nkind = 'logits'\nlearning_rate = '1e-3'", "learning_rate must be a number, got '1e-3'"),
        ("[[stage]]\nkind = 'logits'\nlearning_rate = -1", "learning_rate must be positive, got -1.0"),
        ("[[stage]]\nkind = 'logits'\nnum_steps = 2.5", "num_steps must be an integer, got 2.5"),
        ("[[stage]]\nkind = 'logits'\nbatch_size = true", "batch_size must be an integer, got True"),
        ("[[stage]]\nkind = 'logits'\nbetas = [0.9]", "betas must be 2 values, each a number"),
        ("[[stage]]\nkind = 'logits'\nbetas = [0.9, 1.0]", "betas must be two numbers in"),
        ("[[stage]]\nkind = 'logits'\nallow_no_eviction = 'no'", "allow_no_eviction must be true or false, got 'no'"),
        ("[[stage]]\nkind = 'logits'\ngradient = 'exakt'", "gradient must be 'exact' or 'detached' or an integer"),
        ("[[stage]]\nkind = 'logits'\nwarmup_steps = -1", "warmup_steps must be at least 0"),
    ],
)
def test_bad_recipes_are_refused(tmp_path, content, message):
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_recipe(str(file))


def test_bad_settings_are_refused(model, text, tmp_path):
    with pytest.raises(ValueError, match="neither a recipe \\(logits, memory\\) nor a TOML file"):
        read_recipe("memroy")
    with pytest.raises(ValueError, match="either text, a file that is cut into pieces, or dataset"):
        run_of(model, tmp_path)
    with pytest.raises(ValueError, match="held_out must be at least 2 and below num_texts=7, got 7"):
        run_of(model, tmp_path, text=str(text), held_out=7)
    with pytest.raises(ValueError, match="300 tokens, 2 pieces of 124, of which held_out=2 are measured"):
        run_distill(run_of(model, tmp_path / "a", text=str(text), max_new_tokens=120), thought(), Console(quiet=True))
    with pytest.raises(ValueError, match="window=None evicts nothing"):
        run_distill(run_of(model, tmp_path / "b", text=str(text)), tc.ThoughtConfig(window=None), Console(quiet=True))
    with pytest.raises(ValueError, match="max_new_tokens=9 is too short for window=8, which would hold every text"):
        run_distill(run_of(model, tmp_path / "c", text=str(text), max_new_tokens=9), thought(), Console(quiet=True))
    budgets = tc.ThoughtConfig(r=2, num_global_tokens=2, window=8, eviction_budgets=[10, 6])
    with pytest.raises(ValueError, match=r"too short for window=8, whose layers hold \d thoughts"):
        run_distill(run_of(model, tmp_path / "c", text=str(text), max_new_tokens=7), budgets, Console(quiet=True))
    paper = tc.ThoughtConfig(r=2, num_global_tokens=2, window=8)
    with pytest.raises(ValueError, match=r"stage 1 \(transfer\): memory='adapter'"):
        run_distill(run_of(model, tmp_path / "d", text=str(text), recipe="memory"), paper, Console(quiet=True))
    assert not any((tmp_path / name).exists() for name in "abcd")


@pytest.mark.parametrize("budgets", [[10, 6], "pyramid"])
def test_texts_that_the_window_holds_are_evicted_where_a_layer_holds_fewer(budgets, model, text, tmp_path):
    """Window 8 holds 9 thoughts; after the first eviction of the smallest layer there are some to measure."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[stage]]\nkind = "logits"\nnum_steps = 1\nbatch_size = 2\n')
    settings = dataclasses.replace(thought(), eviction_budgets=budgets)
    run = run_of(model, tmp_path / "run", text=str(text), recipe=str(recipe), max_new_tokens=9)
    found = run_distill(run, settings, Console(quiet=True))
    assert [row["stage"] for row in found["held_out"]][-1] == "1-logits"
    short = run_of(model, tmp_path / "b", text=str(text), recipe=str(recipe), max_new_tokens=3)
    with pytest.raises(ValueError, match=r"too short for window=8, whose layers hold \d thoughts"):
        run_distill(short, settings, Console(quiet=True))
    assert not (tmp_path / "b").exists()


def test_recipes_by_name():
    assert read_recipe("memory") is RECIPES["memory"]
    assert [stage.kind for stage in RECIPES["memory"]] == ["transfer", "logits"]
    assert Stage(kind="transfer").num_steps == 200


def test_summary_by_hand():
    """The token after the first eviction is the first that counts; texts weigh the same."""
    values = [torch.tensor([1.0, 1.0, 1.0, 4.0, 6.0]), torch.tensor([2.0, 2.0, 2.0, 1.0]), torch.tensor([9.0])]
    found = summary(values, window=2)
    assert found.by_text == [5.0, 1.0]
    assert found.after == 3.0
    assert found.before == pytest.approx((3 + 6 + 9) / 7)
    assert found.low < 3.0 < found.high
    with pytest.raises(ValueError, match="1 of 2 held-out texts are longer than window=2"):
        summary([values[0], values[2]], window=2)
