"""A process of a data-parallel run is lost in the middle of a step: a clear error in time, and a run that resumes."""

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
import transformers
from packaging.version import Version

from support.compare import max_difference

WORKER = str(Path(__file__).parents[1] / "support" / "grpo_worker.py")
LIMIT, SHORT = 120.0, 30.0
"""Seconds for a collective, and where somebody hangs: more than two processes differ by when they start."""
LONGEST_WAIT = 100.0
RESUMES = Version(transformers.__version__) >= Version("5.18")
"""Before, `Trainer` cannot load the optimiser on several CPU processes: it asks torch for a device "cpu:0"."""


def launch(folder: Path, happens: str, limit: float = LIMIT) -> list[dict[str, Any]]:
    """Two processes without torchrun, which would stop the survivor before it can say anything; what they printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    command = [sys.executable, "-W", "ignore", WORKER, str(folder), happens, str(limit)]
    running = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = []
    try:
        for process in running:
            printed.append(process.communicate(timeout=250))
            if process.returncode:  # the survivor has spoken; who hangs would go on
                break
    finally:
        for process in running:
            process.kill()
            with process:  # closes its pipes
                process.wait()
    lines = [output.splitlines()[-1] for output, _ in printed if output.startswith("{") or "\n{" in output]
    assert lines, printed[0][1][-4000:]
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_rank_ends_the_step_with_an_error_and_the_run_resumes(tmp_path: Path) -> None:
    expected = launch(tmp_path / "undisturbed", "nothing")
    assert [one["step"] for one in expected] == [3, 3]
    for happens, limit in (("die", LIMIT), ("hang", SHORT)):
        folder = tmp_path / happens
        found = launch(folder, happens, limit)
        assert [one["rank"] for one in found] == [0], "the process in trouble reports nothing"
        assert found[0]["step"] == 1
        assert "another process of this run was killed or is late" in found[0]["error"]
        assert "continues from its last checkpoint" in found[0]["error"]
        assert found[0]["seconds"] < LONGEST_WAIT, "one process waited too long"
        if not RESUMES:
            continue
        resumed = launch(folder, "nothing")
        assert [one["step"] for one in resumed] == [3, 3]
        for one, other in zip(resumed, expected, strict=True):
            assert max_difference(torch.tensor(one["adapter"]), torch.tensor(other["adapter"])) == 0.0
