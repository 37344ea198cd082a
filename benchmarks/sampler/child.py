"""One measurement in a process of its own: `python -m benchmarks.sampler.child JSON` prints one line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.sampler.case import Case
from benchmarks.sampler.figures import Figure, Measured

CHILD_SECONDS = 4 * 3600


def run_child(case: Case, time_limit: float = CHILD_SECONDS) -> Measured:
    """Measure in a child process.

    Raises:
        RuntimeError: with its last words, if it failed or took too long.
    """
    try:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.sampler.child", case.to_json()],
            capture_output=True,
            text=True,
            timeout=time_limit,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": str(case.threads), "TOKENIZERS_PARALLELISM": "false"},
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"took longer than {time_limit:.0f} seconds") from error
    if run.returncode != 0:
        raise RuntimeError((run.stderr.strip().splitlines() or ["no message"])[-1])
    record: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return Measured(
        figures=[Figure(**figure) for figure in record["figures"]],
        curves={name: (x, y) for name, (x, y) in record["curves"].items()},
        values=record["values"],
    )


def main() -> None:
    """Measure the case that the command line describes."""
    import torch

    case = Case.from_json(sys.argv[1])
    torch.set_num_threads(case.threads)
    measured: Measured = importlib.import_module(f"benchmarks.sampler.{case.kind}").measure(case)
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
