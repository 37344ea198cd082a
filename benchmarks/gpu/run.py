"""Runs checks in a child process that goes on until one ends it; the next child goes on behind that one.

An exception, a crash or a time limit therefore costs one check and leaves the others a fresh CUDA context.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from benchmarks.gpu.check import Check, Outcome
from benchmarks.sampler.figures import Figure

MARK = "outcome: "
WORKER = (sys.executable, "-m", "benchmarks.gpu.worker")
START_SECONDS = 90.0
"""For the imports of a child."""


def run_checks(
    checks: Sequence[Check],
    *,
    device: str,
    size: str,
    limit_seconds: float,
    report: Callable[[Outcome], None],
    worker: Sequence[str] = WORKER,
) -> list[Outcome]:
    """All outcomes, in order.

    Args:
        checks: what to run.
        device: "cuda" or "cpu".
        size: key of `check.SIZES`.
        limit_seconds: for all of them together; those that it leaves out are "not run".
        report: called with every outcome as it comes.
        worker: the command of a child; device, size and names are put behind it.
    """
    deadline = time.monotonic() + limit_seconds
    left = []
    outcomes: dict[str, Outcome] = {}

    def keep(outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        report(outcome)

    for check in checks:
        if check.needs_cuda and device != "cuda":
            keep(Outcome(name=check.name, status="not run", message="needs CUDA"))
        else:
            left.append(check)
    while left and time.monotonic() < deadline:
        for outcome in _child(left, [*worker, device, size], deadline):
            keep(outcome)
            left = [check for check in left if check.name != outcome.name]
    for check in left:
        keep(Outcome(name=check.name, status="not run", message=f"the {limit_seconds:.0f} seconds were over"))
    return [outcomes[check.name] for check in checks]


def _child(checks: Sequence[Check], command: Sequence[str], deadline: float) -> Iterator[Outcome]:
    """Outcomes of one child, until the checks or the child are over; the last one may be an error."""
    names = json.dumps([check.name for check in checks])
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*command, names],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as child,
    ):
        assert child.stdout is not None
        lines = _lines(child.stdout)
        for position, check in enumerate(checks):
            allowed = check.seconds + (START_SECONDS if position == 0 else 0.0)
            started = time.monotonic()
            try:
                line = lines.get(timeout=max(0.0, min(allowed, deadline - started)))
            except queue.Empty:
                child.kill()
                message = f"took longer than {time.monotonic() - started:.0f} seconds"
                yield Outcome(name=check.name, status="error", message=message, elapsed_seconds=allowed)
                return
            elapsed = time.monotonic() - started
            if line is None:
                child.wait()
                errors.seek(0)
                said = [text for text in errors.read().splitlines() if text.strip()]
                message = "\n".join(said[-12:]) or f"exit code {child.returncode}"
                yield Outcome(name=check.name, status="error", message=message, elapsed_seconds=elapsed)
                return
            yield _outcome(line)


def _outcome(line: str) -> Outcome:
    fields = json.loads(line)
    return Outcome(**{**fields, "figures": [Figure(**figure) for figure in fields["figures"]]})


def _lines(stream: IO[str]) -> queue.Queue[str | None]:
    """The lines of the child that are outcomes, as they come; None at its end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            if line.startswith(MARK):  # libraries print there as well
                lines.put(line.removeprefix(MARK))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines
