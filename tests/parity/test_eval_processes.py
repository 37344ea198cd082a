"""`thoughtcache eval` in two processes gives the table of one, and goes on with what another number of them left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from support.text_model import save_questions, save_text_model
from thoughtcache.evaluation.generations import Generation, read_generations
from thoughtcache.evaluation.record_file import read_records
from thoughtcache.evaluation.thinking.selection import Prefix
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.run import GENERATIONS, run_eval
from thoughtcache.recipes.evaluate.shared import forget, gather
from thoughtcache.recipes.evaluate.think import PREFIXES
from thoughtcache.recipes.scaling.run import run_scale
from thoughtcache.scale.crew import Crew, open_crew

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
}
COMMAND = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "thoughtcache_cli",
]
THINK = ["--select", "think@n", "--think-prefix", "6", "--think-threshold", "0.05", "--think-depth", "0.7"]


def in_two(arguments: list[str], command: str = "eval") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    model, questions = save_text_model(folder / "model", num_hidden_layers=4), save_questions(folder / "test.jsonl", 5)
    return {
        "suite": (f"own={questions}",), "model": str(model), "samples": 4, "temperature": 1.0, "max_new_tokens": 24,
        "window": 6,
    }  # fmt: skip


def options(settings: dict[str, Any], folder: Path) -> list[str]:
    given = {**settings, "suite": settings["suite"][0], "output_dir": folder}
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def by_key(folder: Path) -> dict[Any, Generation]:
    return {one.key: one for one in read_generations(folder / GENERATIONS)}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_give_the_table_of_one(settings, tmp_path):
    think = {"select": "think@n", "think_prefix": 6, "think_threshold": 0.05, "think_depth": 0.7}
    whole = run_eval(EvalRun(**settings, **think, output_dir=str(tmp_path / "one")), Console(quiet=True))
    done = in_two([*options(settings, tmp_path / "two"), *THINK])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("think@n (95 %)") == 1, "one process speaks"
    # Three of five questions, half of whose four answers are finished.
    assert "beginnings, process 1 of 2 12/12" in done.stdout
    assert "answers, process 1 of 2 6/6" in done.stdout
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    assert found["suites"] == json.loads(json.dumps(whole["suites"]))
    assert found["think"] == json.loads(json.dumps(whole["think"]))
    assert {**found["last_call"], "seconds": 0} == {**whole["last_call"], "seconds": 0}
    assert by_key(tmp_path / "two") == by_key(tmp_path / "one")
    assert (tmp_path / "two" / "table.md").read_text() == (tmp_path / "one" / "table.md").read_text()
    assert not list((tmp_path / "two").glob("*.rank-*"))
    # Nothing is left to do, and then a run goes on with what other processes left of it.
    again = in_two([*options(settings, tmp_path / "two"), *THINK, "--resume"])
    assert again.returncode == 0, again.stderr[-2000:]
    file = tmp_path / "two" / GENERATIONS
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]))
    file.with_name("generations.rank-5.jsonl").write_text("".join(lines[2:6]) + lines[7][:30])
    (tmp_path / "two" / "phases" / "sample.json").unlink()
    on = in_two([*options(settings, tmp_path / "two"), *THINK, "--resume"])
    assert on.returncode == 0, on.stderr[-2000:]
    assert "6 of 10 answers are there" in on.stdout
    assert by_key(tmp_path / "two") == by_key(tmp_path / "one")
    refused = in_two([*options(settings, tmp_path / "two"), *THINK])
    assert refused.returncode != 0
    assert refused.stderr.count("add --resume to go on") == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_share_every_arm_and_length(settings, tmp_path):
    caches = [{"window": None}, {"window": 6, "eviction": "h2o"}]
    own = {name: value for name, value in settings.items() if name not in ("window", "max_new_tokens")}
    whole = run_scale(
        EvalRun(**own, output_dir=str(tmp_path / "one")), caches, lengths=(9, 24), console=Console(quiet=True)
    )
    arms = ["--cache", "full", "--cache", "window=6,eviction=h2o", "--lengths", "9,24"]
    done = in_two([*options(own, tmp_path / "two"), *arms], "scale")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("sampled at the longest and cut") == 1, "one process speaks"
    for line in ("1/2 full cache: own ", "2/2 window 6, h2o: own "):
        assert done.stdout.count(line) == 1, "one line per arm, of one process"
    found = json.loads((tmp_path / "two" / "results.json").read_text())["points"]
    free = ("seconds", "peak_memory_mib", "folder")
    for one, other in zip(json.loads(json.dumps(whole["points"])), found, strict=True):
        assert {k: v for k, v in one.items() if k not in free} == {k: v for k, v in other.items() if k not in free}
        assert by_key(Path(one["folder"])) == by_key(Path(other["folder"]))
    again = in_two([*options(own, tmp_path / "two"), *arms, "--resume"], "scale")
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads((tmp_path / "two" / "results.json").read_text())["points"] == found
    refused = in_two([*options(own, tmp_path / "two"), *arms], "scale")
    assert refused.returncode != 0
    assert refused.stderr.count("add --resume to go on") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_answer_in_links_as_one_does(settings, tmp_path):
    links = {"context": "10", "keep_first": "1", "keep_last": "1", "max_links": "4"}
    thinking = {"thinking": "markovian", "thinking_options": links}
    whole = run_eval(EvalRun(**settings, **thinking, output_dir=str(tmp_path / "one")), Console(quiet=True))
    given = [part for name, value in links.items() for part in ("--thinking-option", f"{name}={value}")]
    done = in_two([*options(settings, tmp_path / "two"), "--thinking", "markovian", *given])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "answers, process 1 of 2 12/12" in done.stdout, "three of five questions, and the other process has the rest"
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    assert found["suites"] == json.loads(json.dumps(whole["suites"]))
    assert by_key(tmp_path / "two") == by_key(tmp_path / "one")
    assert any(before > 10 for one in by_key(tmp_path / "two").values() for before, _ in one.evictions), "later links"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_process_is_named_and_its_answers_stay(settings, tmp_path):
    """Without torchrun, which would stop the survivor before it can say anything; then one process goes on."""
    more = {**settings, "samples": 24, "batch_size": 1, "max_new_tokens": 60}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "thoughtcache_cli", "eval", *options(more, tmp_path / "killed")]
    first, second = (
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    )
    try:
        theirs = tmp_path / "killed" / "generations.rank-1.jsonl"
        while not theirs.exists() or theirs.stat().st_size < 1000:
            assert first.poll() is None
            assert second.poll() is None
            time.sleep(0.01)
        second.kill()
        errors = first.communicate(timeout=120)[1]
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert first.returncode == 2
    assert "process 1 was killed or has left" in errors
    kept = len(read_records(theirs, Generation))
    assert 0 < kept < 48
    on = run_eval(EvalRun(**more, output_dir=str(tmp_path / "killed"), resume=True), Console(quiet=True))
    assert on["last_call"]["answers"] <= 120 - kept
    whole = run_eval(EvalRun(**more, output_dir=str(tmp_path / "whole")), Console(quiet=True))
    assert on["suites"] == whole["suites"]
    assert by_key(tmp_path / "killed") == by_key(tmp_path / "whole")


def test_what_other_processes_left_is_added_once(tmp_path):
    file = tmp_path / PREFIXES
    lines = [
        json.dumps({"question": "q", "sample": at, "seed": at, "token_ids": [1], "finish_reason": "length",
                    "evictions": [], "num_deep": 0}) + "\n"
        for at in range(5)
    ]  # fmt: skip
    file.write_text("".join(lines[:2]))
    (tmp_path / "prefixes.rank-1.jsonl").write_text("".join(lines[1:3]))
    (tmp_path / "prefixes.rank-12.jsonl").write_text(lines[3] + lines[4][:9])
    gather(file, Prefix)
    assert [record.sample for record in read_records(file, Prefix)] == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == [PREFIXES]
    (tmp_path / "prefixes.rank-1.jsonl").write_text(lines[0])
    forget(file)
    assert list(tmp_path.iterdir()) == []


def test_items_of_one_owner_stay_together_where_there_are_enough():
    owners = ["a", "a", "b", "b", "c", "c", "c"]
    shares = [Crew(rank=rank, size=2).share(range(7), owners) for rank in range(2)]
    assert shares == [[0, 1, 4, 5, 6], [2, 3]]
    shares = [Crew(rank=rank, size=3).share(range(4), ["a", "a", "a", "b"]) for rank in range(3)]
    assert shares == [[0, 3], [1], [2]]
    with open_crew() as crew:
        assert (crew.size, crew.is_first, crew.all(3), crew.from_first([1])) == (1, True, [3], [1])
        assert crew.share("xyz", [0, 0, 1]) == ["x", "y", "z"]
