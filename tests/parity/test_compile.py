"""The backbone of a chunk compiles as one graph, and the replay through it has the same gradient."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.compare import GRADIENT_TOLERANCE

WORKER = Path(__file__).parents[1] / "support" / "compile_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["adapter", "attention"])
@pytest.mark.parametrize("prompts", ["equal", "padded"])
def test_a_chunk_is_one_graph(prompts, memory):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, str(WORKER), prompts, memory], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-4000:]
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["evictions"] == 4
    assert max(report["errors"]) < GRADIENT_TOLERANCE
    first, second = report["graphs"]
    assert first == second, "shapes that were compiled before were compiled again"
    assert 2 <= first <= 8, "one graph for every kind of chunk, without and with autograd"
