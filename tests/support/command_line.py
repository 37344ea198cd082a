"""Run commands as a user does, in a fresh interpreter, and keep what each printed.

One interpreter runs all of them, because importing the libraries takes seconds: file descriptors 1 and 2 are redirected
around each command, so that output of compiled code and of child processes counts as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DRIVER = """
import json, os, sys, tempfile
from thoughtcache_cli import main
report, results = sys.argv[1], {}
for name, arguments in json.load(sys.stdin).items():
    saved = [os.dup(1), os.dup(2)]
    files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]
    for number, file in enumerate(files, start=1):
        os.dup2(file.fileno(), number)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    for number, file in enumerate(saved, start=1):
        os.dup2(file, number)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read())
    results[name] = [code, *texts]
with open(report, "w") as file:
    json.dump(results, file)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str


def run_commands(commands: Mapping[str, Sequence[str]], folder: Path, seconds: float = 300.0) -> dict[str, Finished]:
    """What each command returned and printed, by name; they run one after the other in `folder`."""
    report = folder / "report.json"
    subprocess.run(
        [sys.executable, "-c", _DRIVER, str(report)],
        input=json.dumps({name: list(arguments) for name, arguments in commands.items()}),
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=seconds,
    )
    results = json.loads(report.read_text())
    return {name: Finished(code=code, stdout=out, stderr=err) for name, (code, out, err) in results.items()}
