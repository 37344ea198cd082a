"""Runs an evaluation, kills it at random places, goes on each time, and says what was there after each kill.

    python eval_worker.py SETTINGS.json     prints the lines after each kill and at the end

Children are forked from one process, because importing the libraries takes seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.run import GENERATIONS, run_eval


def whole_lines(folder: Path, name: str = GENERATIONS) -> list[str]:
    """The records that are there, as they are written."""
    file = folder / name
    return file.read_text().split("\n")[:-1] if file.exists() else []


def killed(settings: dict[str, Any], num_bytes: int, name: str) -> None:
    """Run in a child that is killed as soon as this file of its folder has so many bytes."""
    file = Path(settings["output_dir"]) / name
    child = os.fork()
    if child == 0:
        try:
            run_eval(EvalRun(**settings), Console(quiet=True))
        finally:
            os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if file.exists() and file.stat().st_size >= num_bytes:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.001)


def main() -> None:
    """The kills, then a run to the end."""
    given = json.loads(Path(sys.argv[1]).read_text())
    settings, rng = given["settings"], random.Random(given["seed"])
    folder = Path(settings["output_dir"])
    left = []
    for _ in range(given["kills"]):
        goes_on = (folder / "run.json").exists()
        watched = given.get("file", GENERATIONS)
        there = sum(len(line) + 1 for line in whole_lines(folder, watched))
        killed({**settings, "resume": goes_on}, there + rng.randint(0, given["most_bytes"]), watched)
        left.append(whole_lines(folder))
    run_eval(EvalRun(**settings, resume=(folder / "run.json").exists()), Console(quiet=True))
    left.append(whole_lines(folder))
    print(json.dumps(left))


if __name__ == "__main__":
    main()
