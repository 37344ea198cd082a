"""The run of `thoughtcache scale`: every arm at every length, sampled once and cut, or anew at each length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.recipes.evaluate.arms import Arm, arms_of
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.cutting import check_lengths, folder_of_length
from thoughtcache.recipes.evaluate.several import run_arms, top_folder
from thoughtcache.recipes.run.folder import WRITING_REMEDY
from thoughtcache.recipes.scaling.points import LENGTHS, Point, lengths_of, points_of
from thoughtcache.recipes.scaling.report import write_report
from thoughtcache.report.files import writing
from thoughtcache.scale.crew import open_crew


def run_scale(
    run: EvalRun,
    caches: Sequence[Mapping[str, Any]],
    *,
    lengths: Sequence[int],
    base_length: int | None = None,
    sample_each: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure every arm at every length; returns what is written to results.json.

    Args:
        run: what all points share; it names no `max_new_tokens`.
        caches: the settings of each arm; see `arms_of`.
        lengths: bounds on the tokens of an answer, different ones (`lengths_of`).
        base_length: tokens of factor 1, for tables and pictures.
        sample_each: sample anew at each length, so that seconds and memory are those of the length. Otherwise answers
            are sampled at the longest and cut, which gives the same answers (`evaluation/token_answers.py`).
        console: where progress and tables go.

    Returns:
        What is written to results.json; nothing in processes of torchrun other than the first.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
        LostProcess: if another process was killed, or failed.
    """
    if run.max_new_tokens is not None:
        raise ValueError(f"max_new_tokens={run.max_new_tokens} is what lengths say here; leave it out")
    lengths = lengths_of(lengths, None, base_length)
    run = replace(run, max_new_tokens=max(lengths))
    check_lengths(run, lengths)
    arms = arms_of(run, caches)
    with open_crew() as crew:
        console = (console or Console()) if crew.is_first else Console(quiet=True)
        longest = {} if sample_each else {"longest": max(lengths)}
        folder = top_folder(run, arms, "scale", sample_each=sample_each, **longest) if crew.is_first else None
        asked = [_at(arm, length) for arm in arms for length in lengths] if sample_each else arms
        each = [[length] for _ in arms for length in lengths]
        results = run_arms(
            asked,
            folder,
            console,
            lengths=each if sample_each else [lengths] * len(arms),
            shorter="give shorter lengths",
        )
        if folder is None:
            return {}
        found = {Path(one.run.output_dir): result for one, result in zip(asked, results, strict=True)}
        points = [
            point
            for arm in arms
            for length in lengths
            for point in _points(arm, arms[0], length, found, base_length, sample_each)
        ]
        with writing(folder.path, WRITING_REMEDY):
            how = "every length was sampled by itself" if sample_each else "sampled at the longest and cut"
            return write_report(folder.path, run, arms, points, LENGTHS, how, console)


def _at(arm: Arm, length: int) -> Arm:
    """The evaluation of an arm at one length."""
    folder = folder_of_length(Path(arm.run.output_dir), length)
    run = replace(arm.run, max_new_tokens=length, output_dir=str(folder))
    return replace(arm, name=f"{arm.name}, {length} tokens", run=run)


def _folder(arm: Arm, length: int, sample_each: bool) -> Path:
    """Where the answers of an arm at a length are: the longest ones are those that were sampled."""
    own = Path(arm.run.output_dir)
    return folder_of_length(own, length) if sample_each or length != arm.run.max_new_tokens else own


def _points(
    arm: Arm,
    first: Arm,
    length: int,
    results: Mapping[Path, Mapping[str, Any]],
    base_length: int | None,
    sample_each: bool,
) -> list[Point]:
    """One point per suite."""
    folder = _folder(arm, length, sample_each)
    sampled = results.get(folder)
    return points_of(
        arm.name,
        folder,
        None if arm is first else _folder(first, length, sample_each),
        {"suites": results[Path(arm.run.output_dir)]["lengths"][str(length)]} if sampled is None else sampled,
        length=length,
        base_length=base_length,
        is_sampled=sampled is not None,
    )
