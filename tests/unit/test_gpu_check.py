"""The GPU check on a CPU: everything but what needs CUDA runs, and a check that fails costs itself alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.check import SIZES, Check, Context, Outcome, judge
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.profiler import Seen, Span, merged, overlapped
from benchmarks.gpu.run import run_checks
from benchmarks.sampler.figures import Figure

ROOT = Path(__file__).parents[2]
ON_CPU = [check for check in CHECKS if not check.needs_cuda]
CHILD = """
import json, sys, time
for name in json.loads(sys.argv[3]):
    if name == "raises":
        raise RuntimeError("CUDA error: misaligned address")
    if name == "hangs":
        time.sleep(60)
    print("{'loss': 1.0}")
    figures = [{"name": "gap", "value": 2.0 if name == "fails" else 0.5, "at_most": 1.0}]
    status = "failed" if name == "fails" else "passed"
    print("outcome: " + json.dumps({"name": name, "status": status, "figures": figures, "elapsed_seconds": 0.1}))
    sys.stdout.flush()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", ON_CPU, ids=lambda check: check.name)
def test_every_other_check_passes_on_a_cpu(check):
    outcome = judge(check.name, check.run(Context(device=torch.device("cpu"), sizes=SIZES["small"])), 0.0)
    assert outcome.figures
    assert outcome.status == "passed", [(f.name, f.value) for f in outcome.figures if f.verdict() == "FAIL"]


def never(context):
    raise AssertionError("the child runs the checks")


def outcomes_of(*names: str, limit_seconds: float = 120.0, seconds: float = 60.0) -> dict[str, Outcome]:
    checks = [Check(name=name, run=never, seconds=seconds) for name in names]
    found = run_checks(
        checks, device="cuda", size="small", limit_seconds=limit_seconds, report=lambda outcome: None,
        worker=[sys.executable, "-c", CHILD],
    )  # fmt: skip
    assert [outcome.name for outcome in found] == list(names)
    return {outcome.name: outcome for outcome in found}


def test_the_others_go_on_after_an_exception():
    found = outcomes_of("first", "raises", "fails", "last")
    assert [outcome.status for outcome in found.values()] == ["passed", "error", "failed", "passed"]
    assert found["raises"].message.splitlines()[-1] == "RuntimeError: CUDA error: misaligned address"


def test_a_check_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.run.START_SECONDS", 5.0)
    found = outcomes_of("hangs", "last", seconds=0.5)
    assert [outcome.status for outcome in found.values()] == ["error", "passed"]
    assert "took longer than" in found["hangs"].message


def test_what_the_limit_leaves_out_is_not_run():
    found = outcomes_of("first", limit_seconds=0.0)
    assert (found["first"].status, found["first"].message) == ("not run", "the 0 seconds were over")


def test_what_needs_cuda_is_not_run_on_a_cpu(tmp_path):
    assert main(["--device", "cpu", "--output", str(tmp_path), "--only", "graphs", "wait"]) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [(c["name"], c["status"], c["message"]) for c in written["checks"]] == [
        ("compiled steps are CUDA graphs", "not run", "needs CUDA"),
        ("the host does not wait", "not run", "needs CUDA"),
    ]
    assert "needs CUDA" in (tmp_path / "gpu.txt").read_text()


def test_words_that_name_no_check_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "teleport"])
    assert "'the host does not wait'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_runs_with_a_foreign_interpreter_and_without_wheels(tmp_path):
    (tmp_path / "wheels").mkdir()
    command = ["bash", str(ROOT / "benchmarks/gpu/check.sh")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
    options = ["--device", "cpu", "--output", str(tmp_path / "out"), "--only", "generate is"]
    subprocess.run([*command, sys.executable, str(tmp_path / "wheels"), *options], check=True, capture_output=True)
    assert json.loads((tmp_path / "out" / "gpu.json").read_text())["checks"][0]["status"] == "passed"


def test_a_figure_out_of_its_limit_fails_the_check():
    good, bad, free = (
        Figure(name="x", value=v, **limit) for v, limit in ((1, {"at_most": 1}), (2, {"at_most": 1}), (9, {}))
    )
    assert judge("c", [good, free], 1.0).status == "passed"
    assert judge("c", [good, bad], 1.0).status == "failed"
    assert judge("c", [Figure(name="x", value=math.nan, at_most=1)], 1.0).status == "failed"


def test_overlap_of_copies_and_kernels():
    def spans(*times: tuple[float, float]) -> list[Span]:
        return [Span(name="k", start=start, end=end) for start, end in times]

    kernels = spans((0, 4), (2, 6), (8, 10))
    assert merged(kernels) == [(0, 6), (8, 10)]
    # 1 of 2 microseconds, all of 1, none of 1.
    assert overlapped(spans((5, 7), (8.5, 9.5), (11, 12)), kernels) == pytest.approx(2 / 4)
    assert math.isnan(overlapped([], kernels))
    seen = Seen(operators={"cudaStreamSynchronize": 2, "cudaEventSynchronize": 1}, on_device=kernels)
    assert seen.waits == 3
    assert seen.busy_share == pytest.approx(8 / 10)
