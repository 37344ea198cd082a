"""Result files and progress: complete or absent, and readable where there is no terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tests.support.terminal import Terminal
from transformers import TrainerControl, TrainerState, TrainingArguments

from thoughtcache.report import progress, results
from thoughtcache.report.progress import loading, progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.trainer_progress import RichProgressCallback


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    name: str
    seconds: dict[str, float]


# --- results.json -----------------------------------------------------------------------------------------------


def test_what_is_written_comes_back_sorted(tmp_path):
    path = tmp_path / "new" / "results.json"
    payload = {"z": [Row(name="a", seconds={"b": 1.5, "a": 2.0})], "m": (1, True, None), "a": Path("x")}
    assert write_results(path, payload) == path
    assert json.loads(path.read_text()) == {
        "a": "x",
        "m": [1, True, None],
        "z": [{"name": "a", "seconds": {"a": 2.0, "b": 1.5}}],
    }
    text = path.read_text()
    assert text.index('"a": "x"') < text.index('"m"') < text.index('"z"')
    assert text.endswith("}\n")


def test_numbers_that_json_lacks_become_null(tmp_path):
    path = write_results(tmp_path / "r.json", {"nan": float("nan"), "inf": [float("-inf")], "one": 1.0})
    assert json.loads(path.read_text()) == {"nan": None, "inf": [None], "one": 1.0}


def test_the_old_file_survives_a_value_that_cannot_be_written(tmp_path):
    path = write_results(tmp_path / "r.json", {"good": 1})
    with pytest.raises(ValueError, match=r"payload.rows\[1\].loss is a Tensor"):
        write_results(path, {"rows": [{}, {"loss": torch.ones(1)}]})
    with pytest.raises(ValueError, match="key 3"):
        write_results(path, {"steps": {3: 1.0}})
    assert json.loads(path.read_text()) == {"good": 1}


def test_the_old_file_survives_a_crash_while_writing(tmp_path, monkeypatch):
    path = write_results(tmp_path / "r.json", {"good": 1})

    def crash(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_results(path, {"bad": 2})
    assert json.loads(path.read_text()) == {"good": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_a_reader_of_the_old_file_keeps_it(tmp_path):
    path = write_results(tmp_path / "r.json", {"old": 1})
    with path.open() as reader:
        write_results(path, {"new": 2})
        # Replaced, not rewritten: the open file is still the old one.
        assert json.load(reader) == {"old": 1}
    assert json.loads(path.read_text()) == {"new": 2}


# --- environment ------------------------------------------------------------------------------------------------


def test_environment_is_complete_and_can_be_written(tmp_path):
    found = environment()
    assert set(found) == {"git_commit", "git_dirty", "versions", "device", "num_threads", "date"}
    assert set(found["versions"]) == {"python", "torch", "transformers", "peft", "trl", "thoughtcache"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["num_threads"] == torch.get_num_threads()
    assert datetime.fromisoformat(found["date"]).utcoffset().total_seconds() == 0
    assert json.loads(write_results(tmp_path / "e.json", found).read_text()) == found


def make_repository(folder: Path) -> str:
    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(folder), *settings, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    (folder / "results.py").write_text("1\n")
    git("add", "results.py")
    git("commit", "--quiet", "--message", "first")
    return git("rev-parse", "HEAD")


def test_environment_names_the_commit_of_the_package(tmp_path, monkeypatch):
    commit = make_repository(tmp_path)
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    assert (environment()["git_commit"], environment()["git_dirty"]) == (commit, False)
    (tmp_path / "results.py").write_text("2\n")
    assert (environment()["git_commit"], environment()["git_dirty"]) == (commit, True)


def test_environment_ignores_a_repository_that_does_not_hold_the_package(tmp_path, monkeypatch):
    make_repository(tmp_path)
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "results.py").write_text("1\n")
    monkeypatch.setattr(results, "__file__", str(installed / "results.py"))
    assert (environment()["git_commit"], environment()["git_dirty"]) == (None, None)


def test_environment_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["git_commit"] is None


# --- progress ---------------------------------------------------------------------------------------------------


def plain() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=False, width=40), stream


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_plain_lines_come_at_the_start_now_and_then_and_at_the_end(monkeypatch):
    clock, (console, stream) = Clock(monkeypatch), plain()
    monkeypatch.setattr(progress, "mib_in_use", lambda: 1536.0)
    with progress_bar("evaluating", 40, console=console) as advance:
        for step in range(40):
            clock.now += 2.0
            advance(tokens=30, loss=0.5 if step < 39 else 0.123456)
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"evaluating {n}/40" for n in (0, *range(3, 40, 3), 40)]
    assert lines[0] == "evaluating 0/40  1.5 GiB"
    assert lines[1] == "evaluating 3/40  6 s, 74 s left  loss 0.5  15 tok/s  1.5 GiB"
    assert lines[-1] == "evaluating 40/40  80 s  loss 0.1235  15 tok/s  1.5 GiB"


def test_a_quick_phase_gets_two_lines_and_a_brief_one_none(monkeypatch):
    Clock(monkeypatch)
    for brief, expected in ((False, 2), (True, 0)):
        console, stream = plain()
        with progress_bar("evaluating", 40, console=console, brief=brief) as advance:
            for _ in range(40):
                advance()
        assert len(stream.getvalue().splitlines()) == expected


def test_a_phase_that_stops_in_between_says_where():
    console, stream = plain()

    def interrupted() -> None:
        with progress_bar("evaluating", 9, console=console) as advance:
            advance(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().splitlines()[-1].startswith("evaluating 4/9")


def test_plain_lines_of_a_long_phase_are_further_apart():
    assert [progress.plain_wait(seconds) for seconds in (0.0, 100.0, 200.0, 6000.0, 36_000.0)] == [5, 5, 10, 300, 300]
    assert [progress.duration(seconds) for seconds in (0.4, 99.0, 600.0, 36_000.0)] == [
        "0 s",
        "99 s",
        "10 min",
        "10.0 h",
    ]


def test_the_time_left_counts_from_where_a_phase_goes_on(monkeypatch):
    clock, (console, _) = Clock(monkeypatch), plain()
    line = progress.PhaseLine("training", 100, console=console, done=90)
    clock.now = 50.0
    line.update(95)
    assert "50 s, 50 s left" in line.figures()


XTERM = {"TERM": "xterm"}


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    console = Console(file=stream, _environ=XTERM, width=100)
    with progress_bar("evaluating", 3, console=console) as advance:
        advance(2)
        advance(reward=0.25)
    assert "3/3" in stream.getvalue()
    assert "reward 0.25" in stream.getvalue()


def test_a_narrow_terminal_has_room_for_all_figures(monkeypatch):
    clock, stream = Clock(monkeypatch), Terminal()
    console = Console(file=stream, _environ=XTERM, color_system=None, width=80)
    monkeypatch.setattr(progress, "mib_in_use", lambda: 12_840.0)
    line = progress.PhaseLine("GRPO", 100, console=console)
    clock.now = 720.0
    line.update(37, tokens=333_000, loss=0.02293, reward=0.4375)
    line.stop()
    shown = "GRPO 37/100  12 min, 20 min left  loss 0.02293  reward 0.4375  462 tok/s  12.5 GiB"
    assert len(shown) == 82
    last = stream.getvalue().split("\x1b[2K")[-1].splitlines()[0]
    assert last == f"{shown[:79]}…", "one line"


def test_nothing_is_live_where_a_line_cannot_be_drawn_again():
    dumb, coloured = Terminal(), io.StringIO()
    consoles = [
        Console(file=dumb, _environ={"TERM": "dumb"}),
        Console(file=coloured, _environ={**XTERM, "FORCE_COLOR": "1"}),
    ]
    for console, stream in zip(consoles, (dumb, coloured), strict=True):
        assert console.is_terminal
        with progress_bar("evaluating", 3, console=console) as advance:
            assert stream.getvalue().startswith("evaluating 0/3"), "at once"
            advance(3)
        with loading("a model", console):
            pass
        assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == ["evaluating 0/3", "evaluating 3/3"]
        assert "\x1b" not in stream.getvalue()


def test_a_quiet_console_swallows_nothing_that_others_print(capsys):
    console = Console(file=Terminal(), quiet=True, _environ=XTERM)
    with loading("a model", console), progress_bar("evaluating", 3, console=console) as advance:
        print("kept")
        print("kept", file=sys.stderr)
        advance(3)
    assert tuple(capsys.readouterr()) == ("kept\n", "kept\n")


def test_that_a_model_is_loaded_leaves_the_terminal_to_bars_of_downloads(capsys):
    stream = Terminal()
    console = Console(file=stream, width=20, _environ=XTERM)
    with loading("a-model-of-a-long-name", console):
        assert stream.getvalue() == "loading a-model-of-…"
        print("\r 3 %", end="", file=sys.stderr, flush=True)
    assert stream.getvalue().endswith("\r\x1b[2K")
    assert capsys.readouterr().err == "\r 3 %"


def test_other_processes_are_quiet(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    console, stream = plain()
    with progress_bar("evaluating", 2, console=console) as advance:
        advance(2, loss=1.0)
    assert stream.getvalue() == ""


def test_a_negative_total_is_refused():
    with pytest.raises(ValueError, match="total must"), progress_bar("x", -1):
        pass


def run_trainer_events(callback: RichProgressCallback, *, num_steps: int, is_main: bool, tmp_path: Path) -> None:
    """The events of a training run in the order in which a trainer sends them."""
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    state = TrainerState(max_steps=num_steps, is_world_process_zero=is_main)
    control = TrainerControl()
    callback.on_train_begin(arguments, state, control)
    for step in range(1, num_steps + 1):
        state.global_step = step
        callback.on_step_end(arguments, state, control)
        callback.on_log(arguments, state, control, logs={"loss": 1 / step, "reward": step, "other": 9.0})
    callback.on_log(arguments, state, control, logs={"train_runtime": 1.0})
    callback.on_train_end(arguments, state, control)


def test_trainer_lines_at_the_start_and_at_the_last_step_with_its_figures(tmp_path):
    for num_steps in (1, 9):
        console, stream = plain()
        callback = RichProgressCallback(("reward",), console=console)
        run_trainer_events(callback, num_steps=num_steps, is_main=True, tmp_path=tmp_path)
        first, last = stream.getvalue().splitlines()
        assert first.startswith(f"training 0/{num_steps}")
        assert last.startswith(f"training {num_steps}/{num_steps}")
        assert f"loss {1 / num_steps:.4g}  reward {num_steps}" in last


def test_trainer_lines_count_tokens_and_steps_that_are_not_logged(tmp_path):
    console, stream = plain()
    callback = RichProgressCallback(console=console)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    state, control = TrainerState(max_steps=7, global_step=3, num_input_tokens_seen=1000), TrainerControl()
    callback.on_train_begin(arguments, state, control)
    state.global_step, state.num_input_tokens_seen = 5, 1400
    callback.on_step_end(arguments, state, control)
    assert callback._line is not None
    assert (callback._line.done, callback._line.tokens) == (5, 400)
    callback.close()
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == ["training 3/7", "training 5/7"]


def test_trainer_bar_on_a_terminal(tmp_path):
    stream = Terminal()
    callback = RichProgressCallback(("reward",), console=Console(file=stream, _environ=XTERM, width=120))
    run_trainer_events(callback, num_steps=5, is_main=True, tmp_path=tmp_path)
    assert "5/5" in stream.getvalue()
    assert "loss 0.2  reward 5" in stream.getvalue()
    # The cursor is shown again.
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_trainer_is_quiet_on_other_processes(tmp_path):
    for terminal in (False, True):
        stream = Terminal() if terminal else io.StringIO()
        callback = RichProgressCallback(console=Console(file=stream, _environ=XTERM))
        run_trainer_events(callback, num_steps=3, is_main=False, tmp_path=tmp_path)
        assert stream.getvalue() == ""
