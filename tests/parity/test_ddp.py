"""Two processes with half a batch each have the gradient of one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.compare import GRADIENT_TOLERANCE

WORKER = Path(__file__).parents[1] / "support" / "ddp_worker.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_gradients_of_two_processes_are_those_of_one():
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    # `accelerate launch --num_processes 2 --cpu` would start one process; the world size is asserted below.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380)
    assert run.returncode == 0, run.stderr[-4000:]
    reports = sorted((json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")), key=rank_of)
    assert [(report["rank"], report["world"]) for report in reports] == [(0, 2), (1, 2)]
    assert [report["evictions"] for report in reports] == [7, 0]
    for report in reports:
        for name, (at_once, in_parts, local) in report["errors"].items():
            assert at_once < GRADIENT_TOLERANCE, (name, report)
            assert in_parts < GRADIENT_TOLERANCE, (name, report)
            assert local > 1e-2, f"{name}: the halves have the same gradient, nothing was tested"


def rank_of(report: dict) -> int:
    return report["rank"]
