"""Rollouts of several processes are those of one; a process that is lost ends in an error that names it, in time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close
from support.models import tiny_model
from support.process_worker import MORE_PROMPTS, OPTIONS, report

WORKER = str(Path(__file__).parents[1] / "support" / "process_worker.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def reports(folder: Path) -> list[dict[str, Any]]:
    """What the workers left, by rank."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def launch(folder: Path, happens: str, count: int, limit: float, world: int = 2) -> list[dict[str, Any]]:
    """Processes without torchrun, which would stop the survivors of a killed one before they can say anything."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**ENVIRONMENT, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, WORKER, str(folder), happens, str(count), str(limit)]
    running = [subprocess.Popen(command, env={**shared, "RANK": str(rank)}) for rank in range(world)]
    try:
        for process in running:
            process.wait(timeout=120)
        return reports(folder)
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("count", [len(MORE_PROMPTS), 1], ids=["ragged", "fewer_prompts_than_processes"])
def test_two_processes_sample_what_one_samples(count: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", WORKER]
    run = subprocess.run(
        [*command, str(tmp_path), "work", str(count), "60"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    expected = report(tc.rollout(tiny_model(), MORE_PROMPTS[:count], **OPTIONS))
    found = reports(tmp_path)
    assert [(one["rank"], one["world"], one["asked"]) for one in found] == [(0, 2, 0), (1, 2, count)]
    for one in found:
        for name in ("tokens", "prompts", "windows", "columns"):
            assert one[name] == expected[name], name
        rows = [[torch.tensor(row, dtype=torch.float64) for row in side["logprobs"]] for side in (one, expected)]
        assert_close(rows[0], rows[1])
    assert count == 1 or len(set(map(len, expected["tokens"]))) > 1, "no row ended early"


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("happens", "limit", "says"),
    [
        ("die", 60.0, "process 1 was killed or has left"),
        ("hang", 3.0, "process 1 did not finish its share within the time limit"),
        ("fail", 60.0, "process 1 failed: RuntimeError: out of memory, for example"),
    ],
)
def test_a_lost_process_is_named_in_time(happens: str, limit: float, says: str, tmp_path: Path) -> None:
    found = launch(tmp_path, happens, len(MORE_PROMPTS), limit)
    assert [one["rank"] for one in found] == [0], "the process in trouble reports nothing"
    assert found[0]["kind"] == "LostProcess"
    assert says in found[0]["error"]
    assert "continues from its last checkpoint" in found[0]["error"]
    assert found[0]["seconds"] < 30, "one process waited too long"
    assert happens != "hang" or found[0]["seconds"] >= limit


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_another_call_of_another_process_is_refused(tmp_path: Path) -> None:
    found = launch(tmp_path, "differ", 3, 30.0)
    assert [one["kind"] for one in found] == ["ValueError", "ValueError"]
    assert "process 1 called with other prompts or options than process 0" in found[0]["error"]


def test_without_a_process_group_it_is_rollout() -> None:
    model = tiny_model()
    assert report(tc.rollout_across_processes(model, MORE_PROMPTS, **OPTIONS)) == report(
        tc.rollout(model, MORE_PROMPTS, **OPTIONS)
    )
    with pytest.raises(ValueError, match="to_rank must be a rank from 0 to 0"):
        tc.rollout_across_processes(model, MORE_PROMPTS, to_rank=1, **OPTIONS)
    with pytest.raises(ValueError, match="timeout_seconds must be positive, got 0"):
        tc.rollout_across_processes(model, MORE_PROMPTS, timeout_seconds=0.0, **OPTIONS)
