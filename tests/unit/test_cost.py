"""Seconds by phase: sums by hand, phases of the sampler, what a run leaves, and `thoughtcache cost`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.support.models import tiny_model
from tests.support.text_model import save_questions, save_text_model

import thoughtcache as tc
from thoughtcache.measuring.phase_timer import INSIDE, OUTERMOST, PHASES, PhaseTimer, own_seconds
from thoughtcache.recipes.cost.run import ADAPTER, FULL, WINDOWED, run_cost
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.run import run_eval
from thoughtcache.recipes.evaluate.several import run_eval_caches
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.report.phases import LABELS, PhaseSeconds, phase_cells, step_seconds, write_phase_seconds
from thoughtcache_cli import main

MARKOVIAN = {"context": "10", "keep_first": "1", "keep_last": "2", "max_links": "5"}
PROMPTS = [[3, 4, 5], [6, 7]]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_text_model(folder / "model")
    save_questions(folder / "questions.jsonl")
    return folder


def record(**seconds: float) -> dict[str, Any]:
    return {f"time/{name}": seconds.get(name, 0.0) for name in (*PHASES, "step")} | {"completions/mean_length": 5.0}


def test_every_phase_has_a_label_and_one_place() -> None:
    inner = [name for names in INSIDE.values() for name in names]
    assert sorted([*OUTERMOST, *inner]) == sorted(set(PHASES)) == sorted(set(LABELS) - {"other"})


def test_own_seconds_by_hand() -> None:
    total = dict.fromkeys(PHASES, 0.0) | {
        "rollout": 20.0, "prefill": 3.0, "draw": 1.0, "decode": 9.0, "hear": 0.5, "evict": 4.0, "move": 2.5,
        "absorb": 1.0, "backward": 7.0,
    }  # fmt: skip
    own = own_seconds(total)
    assert own == dict.fromkeys(PHASES, 0.0) | {
        "rollout": 2.5, "prefill": 3.0, "draw": 1.0, "decode": 9.0, "hear": 0.5, "evict": 1.5, "move": 1.5,
        "absorb": 1.0, "backward": 7.0,
    }  # fmt: skip
    assert sum(own.values()) == sum(total[name] for name in OUTERMOST)


def test_means_over_steps_add_up_to_the_step() -> None:
    log = [record(rollout=4.0, decode=3.0, replay=1.0, step=6.0), record(rollout=6.0, decode=3.0, step=10.0), {}]
    found = step_seconds("mine", log, completions=8)
    assert found is not None
    assert (found.steps, found.tokens, found.total) == (2, 40.0, 8.0)
    expected = dict.fromkeys(LABELS, 0.0) | {"rollout": 2.0, "decode": 3.0, "replay": 0.5, "other": 2.5}
    assert found.seconds == expected
    assert step_seconds("mine", [{}], completions=8) is None


def test_the_table_leaves_out_what_takes_no_time_and_says_what_was_sampled(tmp_path: Path) -> None:
    seconds = dict.fromkeys(LABELS, 0.0) | {"decode": 3.0, "rollout": 1.0, "backward": 4.0}
    arms = [PhaseSeconds(name=name, steps=1, seconds=seconds, tokens=40.0) for name in ("one", "two")]
    header, body = phase_cells(arms, {"planned": ["a", "b"]})
    assert header == ["seconds (share)", "one", "two"]
    assert body == [
        [LABELS["decode"], *2 * ["3.000 (37.5 %)"]],
        [LABELS["rollout"], *2 * ["1.000 (12.5 %)"]],
        [LABELS["backward"], *2 * ["4.000 (50.0 %)"]],
        ["all", "8.000", "8.000"],
        ["sampled tokens", "40", "40"],
        ["sampled tokens per second of sampling", "10.0", "10.0"],
        ["planned", "a", "b"],
    ]
    write_phase_seconds(tmp_path, arms)
    assert json.loads((tmp_path / "time.json").read_text())["arms"][1]["seconds"]["backward"] == 4.0
    assert (tmp_path / "time.png").stat().st_size > 0


@pytest.mark.parametrize("eviction", ["sliding", "h2o"])
def test_phases_of_the_sampler_lie_inside_one_another_and_change_nothing(eviction: str) -> None:
    model = tiny_model(window=5, evict_fraction=0.4, eviction=eviction, state_rule="gated")
    options: dict[str, Any] = {"max_new_tokens": 14, "seed": 3, "ignore_eos": True}
    plain = tc.rollout(model, PROMPTS, **options)
    timer = PhaseTimer(torch.device("cpu"))
    with timer.phase("rollout"):
        timed = tc.rollout(model, PROMPTS, timer=timer, **options)
    assert [row.token_ids for row in timed] == [row.token_ids for row in plain]
    total = timer.flush()
    own = own_seconds(total)
    assert all(own[name] > 0 for name in ("rollout", "prefill", "draw", "decode", "hear", "evict", "move", "absorb"))
    assert not [name for name in PHASES if own[name] < 0]


def test_a_sampler_without_absorption_has_no_seconds_of_it() -> None:
    model = tiny_model(window=5, r=5, initial_state="identity", absorb=False)
    timer = PhaseTimer(torch.device("cpu"))
    tc.rollout(model, PROMPTS, max_new_tokens=14, ignore_eos=True, timer=timer)
    total = timer.flush()
    assert total["absorb"] == 0 < total["move"]


def run_config(user: Path, output: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model": str(user / "model"), "dataset": str(user / "questions.jsonl"), "output_dir": str(output),
        "max_new_tokens": 9, "distill_steps": 0, "grpo_steps": 2, "group_size": 2, "grpo_batch_size": 2,
    }  # fmt: skip
    return RunConfig(**{**settings, **changes})


def test_a_run_leaves_its_seconds_and_its_reference_has_some(user: Path, tmp_path: Path) -> None:
    thought = tc.ThoughtConfig(r=3, num_global_tokens=5, window=4)
    results = run_real_model(run_config(user, tmp_path, beta=0.1), thought, Console(quiet=True))
    log = results["phases"]["grpo"]["log"]
    assert all(entry["time/reference"] > 0 for entry in log)
    (arm,) = json.loads((tmp_path / "grpo" / "time.json").read_text())["arms"]
    assert arm["steps"] == 2
    assert arm["total_seconds"] == pytest.approx(sum(entry["time/step"] for entry in log) / 2)
    assert all(seconds >= 0 for seconds in arm["seconds"].values())


def test_cost_times_three_arms_at_full_length(user: Path, tmp_path: Path) -> None:
    thought = tc.ThoughtConfig(r=3, num_global_tokens=5, window=4)
    found = run_cost(run_config(user, tmp_path), thought, Console(quiet=True))
    arms = json.loads((tmp_path / "time.json").read_text())["arms"]
    assert [arm["name"] for arm in arms] == [FULL, WINDOWED, ADAPTER]
    assert [(arm["steps"], arm["tokens"]) for arm in arms] == 3 * [(2, 18.0)]
    assert [arm["seconds"]["absorb"] > 0 for arm in arms] == [False, False, True]
    assert [arm["seconds"]["move"] > 0 for arm in arms] == [False, True, True]
    assert found["settings"][FULL]["window"] is None
    assert list(found["planned"]) == [FULL, WINDOWED, ADAPTER]
    assert (tmp_path / "cost.json").is_file()
    with pytest.raises(ValueError, match="already holds a result; add --overwrite"):
        run_cost(run_config(user, tmp_path), thought, Console(quiet=True))


def test_plain_lora_is_beside_its_full_cache_only(user: Path, tmp_path: Path) -> None:
    thought = tc.ThoughtConfig(r=3, num_global_tokens=3, window=4, initial_state="identity", absorb=False)
    found = run_cost(run_config(user, tmp_path, grpo_steps=1), thought, Console(quiet=True))
    assert list(found["settings"]) == [FULL, ADAPTER]


def test_cost_needs_a_window(user: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to compare with the full cache; set a window"):
        run_cost(run_config(user, tmp_path), tc.ThoughtConfig(window=None), Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [{}, {"thinking": "markovian", "thinking_options": MARKOVIAN}])
def test_an_evaluation_says_where_its_seconds_went(user: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    run = EvalRun(
        suite=(f"own={user / 'questions.jsonl'}",), model=str(user / "model"), answer_type="text", window=4,
        max_new_tokens=14, output_dir=str(tmp_path), **more,
    )  # fmt: skip
    found = run_eval(run, Console(quiet=True))
    (arm,) = json.loads((tmp_path / "time.json").read_text())["arms"]
    seconds = arm["seconds"]
    assert arm["total_seconds"] == pytest.approx(found["last_call"]["seconds"], abs=0.02)
    assert arm["tokens"] == found["last_call"]["tokens"]
    assert all(seconds[name] > 0 for name in ("prefill", "decode", "draw", "evict", "move", "rewards", "rollout"))
    assert not [name for name, value in seconds.items() if value < 0]
    assert seconds["absorb"] == seconds["backward"] == 0


def test_caches_of_an_evaluation_are_beside_each_other(user: Path, tmp_path: Path) -> None:
    run = EvalRun(
        suite=(f"own={user / 'questions.jsonl'}",), model=str(user / "model"), answer_type="text", max_new_tokens=12,
        output_dir=str(tmp_path),
    )  # fmt: skip
    run_eval_caches(run, [{"window": None}, {"window": 4}], Console(quiet=True))
    arms = json.loads((tmp_path / "time.json").read_text())["arms"]
    assert [arm["seconds"]["move"] > 0 for arm in arms] == [False, True]
    assert (tmp_path / "time.png").stat().st_size > 0


def test_the_command(user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["cost", "--model", str(user / "model"), "--dataset", str(user / "questions.jsonl"), "--window", "4"]
    given += ["--max-new-tokens", "9", "--group-size", "2", "--grpo-batch-size", "2", "--r", "3"]
    assert main([*given, "--steps", "0", "--output-dir", str(tmp_path / "no")]) == 2
    assert "--steps must be at least 1" in capsys.readouterr().err
    assert main([*given, "--steps", "1", "--output-dir", str(tmp_path / "cost")]) == 0
    assert "planned peak, GiB" in capsys.readouterr().out


def test_seconds_on_a_gpu_are_folded_when_the_device_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mark:
        now = 0

        def __init__(self, **_: Any) -> None:
            self.at = -1

        def record(self) -> None:
            Mark.now += 1
            self.at = Mark.now

        def query(self) -> bool:
            return self.at <= passed

        def elapsed_time(self, other: Mark) -> float:
            return 1000.0 * (other.at - self.at)

    passed = 0
    monkeypatch.setattr("thoughtcache.measuring.phase_timer.torch.cuda.Event", Mark)
    monkeypatch.setattr("thoughtcache.measuring.phase_timer.FOLDED_SPANS", 3)

    def synchronize() -> None:
        nonlocal passed
        passed = Mark.now

    monkeypatch.setattr("thoughtcache.measuring.phase_timer.torch.cuda.synchronize", synchronize)
    timer = PhaseTimer(torch.device("cuda"))
    for _ in range(7):
        timer.begin("decode")
        passed = Mark.now - 2  # the device is one span behind
        timer.end()
    assert len(timer._spans) < 4
    assert timer.flush()["decode"] == 7.0
    assert timer.flush()["decode"] == 0.0


def test_an_evaluation_in_two_calls_has_no_seconds(user: Path, tmp_path: Path) -> None:
    def run(samples: int, **more: Any) -> EvalRun:
        return EvalRun(
            suite=(f"own={user / 'questions.jsonl'}",), model=str(user / "model"), answer_type="text", window=4,
            max_new_tokens=8, samples=samples, temperature=1.0, output_dir=str(tmp_path), **more,
        )  # fmt: skip

    run_eval(run(1), Console(quiet=True))
    assert (tmp_path / "time.json").is_file()
    run_eval(run(2, resume=True), Console(quiet=True))
    assert not list(tmp_path.glob("time.*"))


def test_too_few_questions_are_refused_before_anything_is_timed(user: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="questions"):
        run_cost(
            run_config(user, tmp_path, limit=1, grpo_batch_size=8), tc.ThoughtConfig(window=4), Console(quiet=True)
        )
