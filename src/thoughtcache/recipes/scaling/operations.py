"""`thoughtcache scale --operations`: the embedded chains with more and more operations, under one window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.evaluation.suites import growing_suite
from thoughtcache.recipes.evaluate.arms import Arm, arms_of
from thoughtcache.recipes.evaluate.config import EvalRun, suite_of
from thoughtcache.recipes.evaluate.several import run_arms, top_folder
from thoughtcache.recipes.run.folder import WRITING_REMEDY
from thoughtcache.recipes.scaling.points import OPERATIONS, points_of
from thoughtcache.recipes.scaling.report import write_report
from thoughtcache.report.files import writing
from thoughtcache.scale.crew import open_crew
from thoughtcache.tasks.embedded.long_chains import NUM_OPERATIONS


def run_scale_operations(
    run: EvalRun, caches: Sequence[Mapping[str, Any]], *, console: Console | None = None
) -> dict[str, Any]:
    """Measure every arm on long chains, each number of operations by itself.

    Factor 1 is one operation per chain.

    Args:
        run: what all points share; its suites are `chains-N`, one for every number of operations.
        caches: the settings of each arm; see `arms_of`.
        console: where progress and tables go.

    Returns:
        What is written to results.json; nothing in processes of torchrun other than the first.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
        LostProcess: if another process was killed, or failed.
    """
    found = {name: suite_of(name).num_operations for name, _ in run.named_paths()}
    operations = sorted(number for number in found.values() if number is not None)
    if len(operations) < len(found):
        raise ValueError(f"suite must be chains-N only, with N operations, got {', '.join(found)}")
    arms = arms_of(run, caches)
    with open_crew() as crew:
        console = (console or Console()) if crew.is_first else Console(quiet=True)
        folder = top_folder(run, arms, "scale --operations") if crew.is_first else None
        asked = [_at(arm, number) for arm in arms for number in operations]
        bounds = [[one.run.asked(suite_of(one.run.suite[0]))[2]] for one in asked]
        results = run_arms(asked, folder, console, lengths=bounds, shorter="give fewer operations")
        if folder is None:
            return {}
        by_folder = {one.run.output_dir: result for one, result in zip(asked, results, strict=True)}
        points = [
            point
            for arm in arms
            for number in operations
            for point in points_of(
                arm.name,
                _folder(arm, number),
                None if arm is arms[0] else _folder(arms[0], number),
                by_folder[str(_folder(arm, number))],
                length=number,
                base_length=NUM_OPERATIONS,
                is_sampled=True,
                suite="chains",
            )
        ]
        with writing(folder.path, WRITING_REMEDY):
            how = "every number of operations has problems of its own"
            return write_report(folder.path, run, arms, points, OPERATIONS, how, console)


def _at(arm: Arm, number: int) -> Arm:
    """The evaluation of an arm on chains of so many operations."""
    run = replace(arm.run, suite=(growing_suite(number),), output_dir=str(_folder(arm, number)))
    return replace(arm, name=f"{arm.name}, {number} operations", run=run)


def _folder(arm: Arm, number: int) -> Path:
    return Path(arm.run.output_dir) / f"{OPERATIONS.folder}-{number}"
