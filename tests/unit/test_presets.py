"""Presets: settings that belong together, in Python and on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.support.text_model import save_questions, save_text_model

import thoughtcache as tc
from thoughtcache.presets import PRESETS, default_preset, preset_settings
from thoughtcache_cli import commands, main
from thoughtcache_cli.options.shared import PRESETS as PRESET_NAMES


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_configuration_with_these_settings(name: str) -> None:
    found = tc.preset(name, window=64)
    assert found.window == 64
    assert {key: getattr(found, key) for key in PRESETS[name]} == PRESETS[name]


def test_the_papers_method_is_what_a_configuration_is_by_itself() -> None:
    assert tc.preset("paper").behaviour() == tc.ThoughtConfig().behaviour()


def test_settings_that_are_given_win() -> None:
    found = tc.preset("hybrid", eviction="tova", memory_features=8)
    assert (found.eviction, found.memory, found.memory_features) == ("tova", "attention", 8)


def test_lora_of_any_rank_has_a_square_state() -> None:
    assert tc.preset("lora", r=5).num_global_tokens == 5
    assert tc.preset("lora", window=None).is_plain_lora
    assert preset_settings("lora", {})["num_global_tokens"] == 32


def test_the_command_line_names_them_all() -> None:
    """It imports no library to show its help, and so has a list of its own."""
    assert set(re.findall(r"\w+", PRESET_NAMES)) - {"or"} == set(PRESETS)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"preset='best' is not known.*hybrid"):
        tc.preset("best")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "hybrid"), ({"window": 8, "r": 4, "memory_features": 8}, "hybrid"), ({"memory": "attention"}, "paper"),
     ({"eviction": "h2o"}, "paper"), ({"absorb": False}, "paper"), ({"state_rule": "delta"}, "paper"),
     ({"window": None}, "paper")],
)  # fmt: skip
def test_whoever_chooses_a_method_gets_no_default_preset(given: dict[str, Any], expected: str) -> None:
    assert default_preset("hybrid", given) == expected


@pytest.mark.parametrize(
    ("command", "given", "memory", "eviction"),
    [
        ("distill", [], "attention", "h2o"),
        ("distill", ["--preset", "paper"], "adapter", "sliding"),
        ("distill", ["--memory", "attention"], "attention", "sliding"),
        ("recall", [], "attention", "sliding"),
        ("recall", ["--initial-state", "identity", "--num-global-tokens", "2", "--no-absorb"], "adapter", "sliding"),
        ("train", [], "adapter", "sliding"),
        ("train", ["--preset", "hybrid"], "attention", "h2o"),
    ],
)
def test_the_default_of_each_command(
    command: str, given: list[str], memory: str, eviction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tc.ThoughtConfig] = []
    places = {
        "distill": "thoughtcache.recipes.distill.run.run_distill",
        "recall": "thoughtcache.recipes.recall.run_recall",
        "train": "thoughtcache.recipes.real_model.run_real_model",
    }
    monkeypatch.setattr(places[command], lambda run, thought: seen.append(thought))
    data = [] if command == "recall" else ["--dataset", "questions.jsonl"]
    assert main([command, "--model", "m", *data, "--window", "16", "--r", "2", *given]) == 0
    (thought,) = seen
    assert (thought.memory, thought.eviction, thought.window, thought.r) == (memory, eviction, 16, 2)


def test_a_preset_beside_an_adapter_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "m", "--dataset", "d", "--adapter", "a", "--preset", "paper"]) == 2
    assert "--preset is a setting of the adapter in --adapter" in capsys.readouterr().err


def test_plans_take_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("thoughtcache.recipes.plan.memory_plan.plan_memory", lambda **options: seen.append(options))
    commands.plan({"model": "m", "preset": "hybrid", "memory_features": 4})
    assert seen == [{"model": "m", "preset": "hybrid", "memory_features": 4}]


def test_distillation_of_whoever_says_nothing_teaches_the_memory_first(tmp_path: Path) -> None:
    save_text_model(tmp_path / "model")
    save_questions(tmp_path / "questions.jsonl")
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[[stage]]\nkind = "logits"\nnum_steps = 1\nbatch_size = 2\n')
    given = ["distill", "--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "questions.jsonl")]
    given += ["--window", "4", "--r", "2", "--max-new-tokens", "9", "--num-texts", "4", "--held-out", "2"]
    given += ["--no-baselines"]
    output = tmp_path / "mine"
    assert main([*given, "--recipe", str(recipe), "--output-dir", str(output)]) == 0
    stored = json.loads((output / "run.json").read_text())
    assert (stored["thought"]["memory"], stored["thought"]["eviction"]) == ("attention", "h2o")
    assert [stage["kind"] for stage in stored["recipe"]] == ["logits"]
