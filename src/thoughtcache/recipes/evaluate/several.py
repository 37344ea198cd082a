"""`thoughtcache eval --cache ... --cache ...`: the same questions under several caches, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.evaluation.scores import Share
from thoughtcache.recipes.evaluate.arms import FOLDERS, Arm, arms_of
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.prepare import SHORTER, Remedies, prepare
from thoughtcache.recipes.evaluate.questions import read_questions
from thoughtcache.recipes.evaluate.run import run_eval
from thoughtcache.recipes.evaluate.several_report import write_report
from thoughtcache.recipes.evaluate.subject import SharedBase
from thoughtcache.recipes.evaluate.table import percent
from thoughtcache.recipes.run.folder import WRITING_REMEDY, RunFolder
from thoughtcache.report.files import writing
from thoughtcache.report.progress import duration, plain_line
from thoughtcache.scale.crew import open_crew


def run_eval_caches(
    run: EvalRun, caches: Sequence[Mapping[str, Any]], console: Console | None = None
) -> dict[str, Any]:
    """Ask the same questions under several caches; returns what is written to results.json.

    Every arm is an evaluation in a folder of its own below `arms`. The base is loaded once. A run that goes on may have
    other arms; those that are done are not sampled again.

    Args:
        run: what all arms share; see `arms_of`, as for `caches`.
        caches: the settings of each arm. The others are compared with the first one.
        console: where progress and tables go.

    Returns:
        What is written to results.json; nothing in processes of torchrun other than the first.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
        LostProcess: if another process was killed, or failed.
    """
    arms = arms_of(run, caches)
    with open_crew() as crew:
        console = (console or Console()) if crew.is_first else Console(quiet=True)
        folder = top_folder(run, arms, "eval --cache") if crew.is_first else None
        results = run_arms(arms, folder, console)
        if folder is None:
            return {}
        with writing(folder.path, WRITING_REMEDY):
            return write_report(folder.path, run, arms, results, console)


def top_folder(run: EvalRun, arms: Sequence[Arm], command: str, **described: Any) -> RunFolder:
    """The folder above those of the arms, which look at the settings of each.

    Raises:
        ValueError: if it holds another run.
    """
    settings = {arm.name: arm.settings for arm in arms}
    return RunFolder(
        run.output_dir,
        {"command": command, "caches": settings, **described},
        resume=run.resume,
        overwrite=run.overwrite,
        free=("caches",),
    )


def run_arms(
    arms: Sequence[Arm],
    folder: RunFolder | None,
    console: Console,
    *,
    lengths: Sequence[Sequence[int]] = (),
    shorter: str = SHORTER,
) -> list[dict[str, Any]]:
    """The result of every arm, in order; see `run_eval`.

    Args:
        arms: the arms.
        folder: the folder above theirs; None in processes that write nothing.
        console: where progress and tables go.
        lengths: bounds on the tokens at which the answers of each arm are judged, see `run_eval`; empty for the own
            one of each.
        shorter: how the command makes answers shorter, for errors.

    Raises:
        ValueError, OSError: if an arm cannot be used; nothing is sampled or written then.
    """
    base, results = SharedBase(), []
    _check_arms(arms, base, shorter, console)
    if folder is not None:
        with writing(folder.path, WRITING_REMEDY):
            if arms[0].run.overwrite:
                _forget_arms(folder.path / FOLDERS)
            folder.begin()
    for number, arm in enumerate(arms, start=1):
        place = f"{number}/{len(arms)} {arm.name}"
        # The whole run may have stopped before this arm began.
        own = replace(arm.run, resume=arm.run.resume and (Path(arm.run.output_dir) / "run.json").is_file())
        bounds = lengths[number - 1] if lengths else ()
        results.append(run_eval(own, console, base=base, lengths=bounds, brief=len(arms) > 1))
        if len(arms) > 1 and folder is not None:
            plain_line(console, f"{place}: {_in_short(results[-1])}")
    return results


def _in_short(result: Mapping[str, Any]) -> str:
    """What an arm has come to, in a line."""
    seconds = result["last_call"]["seconds"]
    shares = (f"{name} {percent(Share(**own['accuracy']))}" for name, own in result["suites"].items())
    return ", ".join([*shares, *([] if seconds is None else [duration(seconds)])])


def _check_arms(arms: Sequence[Arm], base: SharedBase, shorter: str, console: Console) -> None:
    """Look at what every arm asks, once for each cache and suite, at its longest answers."""
    longest: dict[str, dict[tuple[str, ...], Arm]] = {}
    for arm in arms:
        of_cache = longest.setdefault(repr(arm.settings), {})
        other = of_cache.setdefault(tuple(arm.run.suite), arm)
        if (arm.run.max_new_tokens or 0) > (other.run.max_new_tokens or 0):
            of_cache[tuple(arm.run.suite)] = arm
    report = partial(plain_line, Console(quiet=True))
    for of_cache in longest.values():
        with base.opened(next(iter(of_cache.values())).run, console) as opened:
            for arm in of_cache.values():
                remedies = Remedies(
                    shorter=shorter, rolling=f"give the cache {arm.name!r} a window and 'positions=rolling'"
                )
                prepare(arm.run, read_questions(arm.run, report), opened, report, remedies=remedies)


def _forget_arms(folder: Path) -> None:
    """Leave no older arm that a run could go on with, also of those that this run may not reach."""
    for pattern in ("run.json", "phases/*.json"):
        for file in folder.rglob(pattern):
            file.unlink()
