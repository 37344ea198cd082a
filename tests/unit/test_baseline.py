"""`thoughtcache train --baseline`: LoRA under the same window, trained and asked beside the run's own method."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.text_model import save_text_model

import thoughtcache as tc
from thoughtcache.recipes import real_model
from thoughtcache.recipes.load_adapter import read_adapter
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.train.trl.trainer import ThoughtGRPOTrainer
from thoughtcache_cli import main

OWN = ["base, full cache", "base, window", "after distillation", "after GRPO"]
BESIDE = ["LoRA_c, after distillation", "LoRA_c, after GRPO"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_text_model(folder / "model")
    words = random.Random(0)
    rows = [{"question": f"w{3 + n} w{words.randint(3, 9)}", "answer": f"w{3 + n % 4}"} for n in range(12)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_config(user: Path, output: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model": str(user / "model"), "dataset": str(user / "questions.jsonl"), "output_dir": str(output),
        "answer_type": "text", "max_new_tokens": 9, "distill_steps": 2, "distill_batch_size": 3, "grpo_steps": 3,
        "group_size": 2, "grpo_batch_size": 2, "save_every": 1, "held_out": 4, "baseline": True, "beta": 0.5,
    }  # fmt: skip
    return RunConfig(**{**settings, **changes})


def thought(**changes: Any) -> tc.ThoughtConfig:
    return tc.ThoughtConfig(**{"r": 3, "num_global_tokens": 5, "window": 4, "eviction": "h2o", **changes})


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(user: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder of a run with a baseline, what it returned, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    console = Console(file=io.StringIO(), width=240)
    found = run_real_model(run_config(user, folder), thought(), console)
    return folder, found, console.file.getvalue()  # type: ignore[attr-defined]


def test_its_rows_stand_in_the_table_and_are_compared_question_by_question(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    folder, found, printed = finished
    assert list(found["before_after"]) == OWN + BESIDE
    table = (folder / "before_after.md").read_text()
    assert [name for name in OWN + BESIDE if f"| {name} |" in table] == OWN + BESIDE
    assert "| less LoRA_c |" in table
    answers = {
        name: json.loads((place / "phases" / "ask-after-GRPO.json").read_text())["answers"]
        for name, place in (("own", folder), ("lora", folder / "baseline"))
    }
    assert [one["question"] for one in answers["own"]] == [one["question"] for one in answers["lora"]]
    right = {name: sum(one["correct"] for one in own) for name, own in answers.items()}
    less = found["before_after"]["after GRPO"]["less_lora"]
    assert less["num_questions"] == 4
    assert less["difference"] == pytest.approx((right["own"] - right["lora"]) / 4)
    assert "less_lora" not in found["before_after"][BESIDE[1]]
    assert found["before_after"][BESIDE[1]]["less_base_window"]["num_questions"] == 4
    assert "which doubles the time" in printed
    assert printed.count("did it help?") == 2, "the run's own table does not wait for the baseline"


def test_it_is_the_same_run_with_another_adapter(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, found, _ = finished
    own, lora = (json.loads((place / "run.json").read_text()) for place in (folder, folder / "baseline"))
    differing = {name for name in own if own[name] != lora[name]}
    assert differing == {"baseline", "output_dir", "thought"}
    config = read_adapter(str(folder / "baseline" / "adapter"))[0]
    assert config.is_plain_lora
    assert (config.r, config.window, config.eviction) == (3, 4, "h2o")
    assert not (folder / "baseline" / "phases" / "teacher.samples").exists(), "the teacher's samples are shared"
    beside = json.loads((folder / "baseline" / "results.json").read_text())
    assert {name: len(phase["log"]) for name, phase in beside["phases"].items() if name == "grpo"} == {"grpo": 3}
    assert set(beside["before_after"]) == set(OWN)
    assert json.loads((folder / "results.json").read_text())["before_after"].keys() == found["before_after"].keys()


def test_a_run_without_it_ends_with_the_same_adapter(
    user: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any], str]
) -> None:
    run_real_model(run_config(user, tmp_path, baseline=False), thought(), Console(quiet=True))
    assert weights(tmp_path) == weights(finished[0])
    assert not (tmp_path / "baseline").exists()
    # It may be added to a run that has ended, which is not trained again.
    found = run_real_model(run_config(user, tmp_path, resume=True), thought(), Console(quiet=True))
    assert list(found["before_after"]) == OWN + BESIDE
    assert weights(tmp_path / "baseline") == weights(finished[0] / "baseline")


def test_a_run_that_was_killed_in_the_middle_of_it_goes_on(
    user: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, grpo = ThoughtGRPOTrainer.training_step, real_model._grpo
    began: list[Path] = []

    def noted(*given: Any) -> Any:
        began.append(given[4])
        return grpo(*given)

    def killed(self: Any, *given: Any, **named: Any) -> Any:
        if "baseline" in self.args.output_dir and self.state.global_step == 2:
            raise KeyboardInterrupt
        return train(self, *given, **named)

    monkeypatch.setattr(real_model, "_grpo", noted)
    with monkeypatch.context() as patch:
        patch.setattr(ThoughtGRPOTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_real_model(run_config(user, tmp_path), thought(), Console(quiet=True))
    assert [path.relative_to(tmp_path) for path in began] == [Path("grpo"), Path("baseline/grpo")]
    assert list(json.loads((tmp_path / "results.json").read_text())["before_after"]) == sorted(OWN)
    console = Console(file=io.StringIO(), width=200)
    found = run_real_model(run_config(user, tmp_path, resume=True), thought(), console)
    assert [path.relative_to(tmp_path) for path in began[2:]] == [Path("baseline/grpo")]
    assert "grpo goes on from checkpoint-2" in console.file.getvalue()  # type: ignore[attr-defined]
    assert list(found["before_after"]) == OWN + BESIDE
    assert weights(tmp_path / "baseline") == weights(finished[0] / "baseline")


def test_a_dry_run_says_that_it_doubles_the_time(user: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    run_real_model(run_config(user, tmp_path / "run", dry_run=True), thought(), console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "LoRA of rank 3 under the same window" in printed
    assert "which doubles the time" in printed
    assert not (tmp_path / "run").exists()


def test_overwriting_a_run_forgets_its_baseline_in_the_same_moment(
    user: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)

    def killed(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    again = {"overwrite": True, "distill_learning_rate": 1e-3, "grpo_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(real_model, "_grpo", killed)
        with pytest.raises(KeyboardInterrupt):
            run_real_model(run_config(user, tmp_path, **again), thought(), Console(quiet=True))
    assert not (tmp_path / "baseline" / "run.json").exists()
    assert not list((tmp_path / "baseline" / "phases").iterdir())
    going = {**again, "overwrite": False, "resume": True}
    found = run_real_model(run_config(user, tmp_path, **going), thought(), Console(quiet=True))
    assert list(found["before_after"]) == OWN + BESIDE
    assert json.loads((tmp_path / "baseline" / "run.json").read_text())["distill_learning_rate"] == 1e-3


def test_going_on_without_asking_for_it_keeps_its_rows(
    user: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any], str]
) -> None:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    run = run_config(user, tmp_path, resume=True, baseline=False)
    found = run_real_model(run, thought(), Console(quiet=True))
    assert found["before_after"] == finished[1]["before_after"]
    assert json.loads((tmp_path / "run.json").read_text())["baseline"] is True
    assert "| LoRA_c, after GRPO |" in (tmp_path / "before_after.md").read_text()
    # It has another number of steps than the run then: not the same comparison any more.
    console = Console(file=io.StringIO(), width=200)
    longer = run_real_model(dataclasses.replace(run, grpo_steps=4), thought(), console)
    assert list(longer["before_after"]) == OWN
    assert "--baseline goes on with it" in console.file.getvalue()  # type: ignore[attr-defined]


def test_another_run_in_its_place_is_seen_by_a_dry_run_and_stays(
    user: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any], str]
) -> None:
    other = tmp_path / "baseline"
    shutil.copytree(finished[0], other)
    run = run_config(user, tmp_path, dry_run=True)
    with pytest.raises(
        ValueError, match=r"baseline already holds a run; move that folder away .* leave out --baseline"
    ):
        run_real_model(run, thought(), Console(quiet=True))
    shutil.copy(finished[0] / "run.json", tmp_path / "run.json")
    marker = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**marker, "seed": 7}))
    short = {"baseline": False, "distill_steps": 0, "grpo_steps": 1, "held_out": 0}
    run_real_model(run_config(user, tmp_path, overwrite=True, **short), thought(), Console(quiet=True))
    assert (other / "run.json").exists(), "it never belonged to the run that was overwritten"


REFUSED = {
    "LoRA_c itself": ((), {"preset": "lora"}, "--baseline changes nothing: the adapter of this run is plain LoRA"),
    "no window": ((), {"window": "none"}, "--baseline trains LoRA under the window, and --window none has none"),
    "no questions": (("--held-out", "0"), {}, "--baseline compares with LoRA on held-out questions"),
    "no GRPO": (("--grpo-steps", "0"), {}, "--baseline changes nothing with --grpo-steps 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_baseline_that_compares_nothing_is_refused(
    name: str, user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, settings, message = REFUSED[name]
    given = {"window": "4", "max-new-tokens": "9", **settings}
    if name == "no window":
        more = ("--distill-steps", "0")
    arguments = [part for key, value in given.items() for part in (f"--{key}", value)]
    command = ["train", "--model", str(user / "model"), "--dataset", str(user / "questions.jsonl"), "--baseline"]
    assert main([*command, *arguments, *more, "--output-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_from_a_trained_adapter_has_no_baseline(
    user: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any], str]
) -> None:
    run = run_config(user, tmp_path, adapter=str(finished[0] / "adapter"))
    with pytest.raises(ValueError, match="--adapter lets the run begin with a trained adapter"):
        run_real_model(run, thought(), Console(quiet=True))


def test_the_embedded_job_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--baseline"]) == 2
    assert "the embedded job is fixed and takes no --baseline" in capsys.readouterr().err
