"""The table, the picture and the numbers of an evaluation under several caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.evaluation.paired import PairedDifference
from thoughtcache.evaluation.scores import Share
from thoughtcache.recipes.evaluate.arms import Arm
from thoughtcache.recipes.evaluate.compare import answers_by_suite, paired_difference
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.seconds import write_seconds
from thoughtcache.recipes.evaluate.table import percent, points, without_empty
from thoughtcache.report.files import replace_file
from thoughtcache.report.plots import Panel, Series, plot_curves
from thoughtcache.report.progress import plain_line
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import markdown, print_cells

WIDTH = 0.6
"""The arms of one suite are drawn side by side over so much of the axis."""
LONGEST_LABEL = 36
"""Letters of a name for which a legend has room."""


def write_report(
    folder: Path, run: EvalRun, arms: Sequence[Arm], results: Sequence[Mapping[str, Any]], console: Console
) -> dict[str, Any]:
    """Print the table; write table.md, caches.png, results.json, and the seconds by phase: time.md, .png and .json.

    An arm that was stopped in between is not among the seconds: only the last part of it is known.

    Args:
        folder: the folder of the run.
        run: what all arms share.
        arms: the arms.
        results: what `run_eval` returned for each.
        console: where the table goes.
    """
    differences = differences_to_first(arms)
    header, body = table(arms, results, differences)
    header, rows = without_empty(header, body)
    print_cells(str(run.model or "the packaged reasoner"), header, rows, console)
    if len(arms) > 1:
        plain_line(console, f"differences are those to {arms[0].name!r}, question by question, with 95 % intervals")
    replace_file(folder / "table.md", markdown(header, rows).encode())
    picture = plot_curves(folder / "caches.png", panels(arms, results, differences))
    write_seconds(
        folder,
        {name: (result, _num_answers(result)) for name, result in zip(labels(arms), results, strict=True)},
    )
    payload: dict[str, Any] = {
        "environment": environment(),
        "run": asdict(run),
        "caches": [
            {
                "name": arm.name,
                "folder": arm.run.output_dir,
                "settings": arm.settings,
                **{name: result[name] for name in ("cache", "suites", "last_call")},
                "less_first": {
                    suite: {**asdict(found), "difference": found.difference} for suite, found in own.items()
                },
            }
            for arm, result, own in zip(arms, results, differences, strict=True)
        ],
    }
    written = write_results(folder / "results.json", payload)
    for label, path in (("table", folder / "table.md"), ("picture", picture), ("results", written)):
        console.print(f"{label}: {path}", soft_wrap=True)
    return payload


def differences_to_first(arms: Sequence[Arm]) -> list[dict[str, PairedDifference]]:
    """Suite -> paired difference of an arm to the first one, for every arm; nothing for the first.

    Raises:
        ValueError: if two arms have different references.
    """
    answers = [answers_by_suite(Path(arm.run.output_dir)) for arm in arms]
    first = answers[0]
    return [{}, *({suite: paired_difference(suite, first[suite], own[suite]) for suite in own} for own in answers[1:])]


def table(
    arms: Sequence[Arm],
    results: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, PairedDifference]],
) -> tuple[list[str], list[list[str]]]:
    """Header and rows; "" where a figure is not known."""
    several = len(results[0]["suites"]) > 1
    header = ["cache", "suite", "questions", "accuracy (95 %)", "less the first (95 %)", "better", "worse", "cut"]
    header += ["tokens", "evictions", "seconds (all suites)" if several else "seconds"]
    rows = []
    for arm, result, own in zip(arms, results, differences, strict=True):
        for suite, scores in result["suites"].items():
            found = own.get(suite)
            rows.append(
                [
                    arm.name,
                    suite if several else "",
                    str(scores["num_questions"]),
                    percent(Share(**scores["accuracy"])),
                    *(["", "", ""] if found is None else [points(found), str(found.better), str(found.worse)]),
                    f"{100 * scores['truncated']:.1f} %",
                    f"{scores['tokens']['mean']:,.0f}",
                    f"{scores['evictions_mean']:.1f}" if scores["evictions_mean"] else "",
                    _seconds(result),
                ]
            )
    return header, rows


def _seconds(result: Mapping[str, Any]) -> str:
    """Seconds of sampling; "" for a run that was stopped in between, of which only the last part is known."""
    last = result["last_call"]
    return f"{last['seconds']:,.1f}" if last["answers"] == _num_answers(result) else ""


def _num_answers(result: Mapping[str, Any]) -> int:
    """Answers of all suites."""
    return sum(one["num_questions"] * one["num_samples"] for one in result["suites"].values())


def labels(arms: Sequence[Arm]) -> list[str]:
    """The names as a legend has room for them: the ends of long ones, with numbers where these are the same."""
    found: list[str] = []
    for number, arm in enumerate(arms, start=1):
        label = arm.name if len(arm.name) <= LONGEST_LABEL else f"...{arm.name[3 - LONGEST_LABEL :]}"
        found.append(label if label not in found else f"{number}: {label}")
    return found


def panels(
    arms: Sequence[Arm],
    results: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, PairedDifference]],
) -> list[Panel]:
    """Accuracies and paired differences with their intervals, those of one suite side by side."""
    suites = list(results[0]["suites"])
    accuracies, less_first = _Points(), _Points()
    names = labels(arms)
    for number, (name, result, own) in enumerate(zip(names, results, differences, strict=True)):
        shift = WIDTH * (number / max(1, len(arms) - 1) - 0.5)
        for place, suite in enumerate(suites, start=1):
            accuracies.add(name, place + shift, Share(**result["suites"][suite]["accuracy"]))
            if suite in own:
                found = own[suite]
                less_first.add(name, place + shift, Share(value=found.difference, low=found.low, high=found.high))
    drawn = [accuracies.panel("Right answers, with 95 % intervals", "right answers (%)", suites, from_zero=True)]
    if less_first.series:
        drawn.append(less_first.panel(f"Less {names[0]}, with 95 % intervals", "difference (points)", suites))
    return drawn


class _Points:
    """Shares with intervals by name, in percent."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.intervals: dict[str, Series] = {}

    def add(self, name: str, place: float, share: Share) -> None:
        pairs = ((self.series, (place, 100 * share.value)), (self.intervals, (100 * share.low, 100 * share.high)))
        for found, (first, second) in pairs:
            own = found.setdefault(name, ([], []))
            own[0].append(first)
            own[1].append(second)

    def panel(self, title: str, y_label: str, suites: Sequence[str], *, from_zero: bool = False) -> Panel:
        return Panel(
            title=title,
            x_label="suite",
            y_label=y_label,
            series=self.series,
            intervals=self.intervals,
            from_zero=from_zero,
            x_ticks={float(place): suite for place, suite in enumerate(suites, start=1)},
            connected=False,
        )
