"""The embedded job from end to end with a budget of seconds: what it leaves behind, and what an interruption leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from thoughtcache.recipes.embedded import job as embedded
from thoughtcache.recipes.run.config import RunConfig


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    task = dataclasses.replace(embedded.EMBEDDED_TASKS["chains"], distill_steps=2, grpo_steps=1, teacher_samples=64)
    monkeypatch.setitem(embedded.EMBEDDED_TASKS, "chains", task)
    for name, value in {"VALIDATION_SIZE": 4, "GRPO_PROMPTS": 2, "GRPO_GROUP": 2}.items():
        monkeypatch.setattr(embedded, name, value)


def run_config(folder: Path, **options: object) -> RunConfig:
    return RunConfig(output_dir=str(folder), evaluation_size=4, save_every=1, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_budget")
def test_leaves_table_curves_results_and_adapters(tmp_path: Path) -> None:
    results = embedded.run_embedded(run_config(tmp_path, profile_memory=True), Console(quiet=True))
    assert set(results["systems"]) == {"base_full", "base_window", "lora_window", "thought_paper", "thought_best"}
    assert results["systems"]["base_full"]["accuracy"]["correct"] == 4  # the reasoner knows its task
    assert results["systems"]["base_window"]["accuracy"]["correct"] == 0  # and not under the window
    assert results["systems"]["base_full"]["accuracy"]["evictions_mean"] == 0
    assert results["systems"]["thought_best"]["accuracy"]["evictions_mean"] > 0
    assert json.loads((tmp_path / "results.json").read_text())["run"]["seed"] == 0
    assert (tmp_path / "curves.png").stat().st_size > 0
    profile = json.loads((tmp_path / "grpo_thought_best" / "memory.json").read_text())
    assert {"rollout", "replay", "backward", "optimizer"} <= set(profile["peaks_mib_by_phase"])
    assert {phase for _, _, phase in profile["timeline"]} >= {"rollout", "backward"}
    assert (tmp_path / "grpo_thought_best" / "memory.png").stat().st_size > 0
    assert "PTE, paper's rule" in (tmp_path / "table.md").read_text()
    for arm in ("lora_window", "thought_paper", "thought_best", "grpo_lora_window", "grpo_thought_best"):
        assert (tmp_path / arm / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("small_budget")
def test_a_quick_job_is_shorter_and_says_so_beside_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embedded.QUICK["distill_steps"] < 400
    shorter = {**embedded.QUICK, "distill_steps": 1, "grpo_steps": 1, "teacher_samples": 32}
    monkeypatch.setattr(embedded, "QUICK", shorter)
    results = embedded.run_embedded(run_config(tmp_path, quick=True), Console(width=300))
    assert set(results["systems"]) == {"base_full", "base_window", "thought_best"}
    assert set(results["grpo"]) == {"thought_best"}
    assert [step for step, _ in results["systems"]["thought_best"]["curve"]] == [1]
    for text in (results["note"], (tmp_path / "table.md").read_text(), capsys.readouterr().out):
        assert "shortened job" in text
    with pytest.raises(ValueError, match=r"other settings \(quick\)"):
        embedded.run_embedded(run_config(tmp_path, resume=True), Console(quiet=True))


@pytest.mark.usefixtures("small_budget")
def test_an_interrupted_run_goes_on_without_repeating_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_grpo_arm", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embedded.run_embedded(run_config(tmp_path), Console(quiet=True))
    done = {path.stem for path in (tmp_path / "phases").glob("*.json")}
    assert done == {"base_full", "base_window", "lora_window", "thought_paper", "thought_best"}
    with pytest.raises(ValueError, match="--resume"):
        embedded.run_embedded(run_config(tmp_path), Console(quiet=True))
    monkeypatch.setattr(embedded, "_distil_arm", interrupted)  # a repeated phase would stop the run again
    results = embedded.run_embedded(run_config(tmp_path, resume=True), Console(quiet=True))
    assert set(results["grpo"]) == {"lora_window", "thought_best"}
