"""`thoughtcache eval --compare A B`: two runs on the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.evaluation.generations import Generation, by_question, read_generations
from thoughtcache.evaluation.paired import PairedDifference, compare
from thoughtcache.recipes.evaluate.run import GENERATIONS
from thoughtcache.recipes.evaluate.table import points
from thoughtcache.recipes.run.folder import SPACE_REMEDY
from thoughtcache.report.files import replace_file, writing
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import plain_line
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import markdown, print_cells

HEADER = ("suite", "questions", "A", "B", "B - A (95 %)", "B better", "B worse", "detectable")


def run_compare(
    first: str, second: str, *, output_dir: str = "runs/comparison", console: Console | None = None
) -> dict[str, Any]:
    """Compare two runs, question by question; returns what is written to comparison.json.

    Runs that are not finished are compared on the questions that have all their answers.

    Args:
        first: folder of run A.
        second: folder of run B.
        output_dir: folder for comparison.json, comparison.md and comparison.png, which are replaced.
        console: where the table goes.

    Raises:
        ValueError, OSError: if a folder holds no run, the runs have no suite in common, or a question has another
            answer in each.
    """
    console, folder = console or Console(), Path(output_dir)
    runs = [answers_by_suite(Path(path)) for path in (first, second)]
    shared = [name for name in runs[0] if name in runs[1]]
    if not shared:
        raise ValueError(
            f"{first} has the suites {', '.join(runs[0])} and {second} {', '.join(runs[1])}; compare runs of the same"
        )
    found = {name: paired_difference(name, runs[0][name], runs[1][name]) for name in shared}
    rows = [_cells(name, own) for name, own in found.items()]
    print_cells(f"A = {first}, B = {second}", HEADER, rows, console)
    plain_line(
        console,
        "detectable: the smallest true difference that as many questions show with a chance of 80 %, at this spread",
    )
    with writing(folder, SPACE_REMEDY):
        replace_file(folder / "comparison.md", markdown(HEADER, rows).encode())
        picture = plot_curves(folder / "comparison.png", [_panel(found)])
        payload: dict[str, Any] = {
            "environment": environment(),
            "first": first,
            "second": second,
            "suites": {name: {**asdict(own), "difference": own.difference} for name, own in found.items()},
        }
        results = write_results(folder / "comparison.json", payload)
    for label, path in (("table", folder / "comparison.md"), ("picture", picture), ("results", results)):
        console.print(f"{label}: {path}", soft_wrap=True)
    return payload


def answers_by_suite(folder: Path) -> dict[str, dict[str, list[Generation]]]:
    """Suite -> question -> answers, for the questions that have as many answers as any."""
    file = folder / GENERATIONS
    generations = read_generations(file)
    if not generations:
        raise ValueError(f"{folder} holds no answers ({GENERATIONS}); give the --output-dir of two evaluations")
    names = dict.fromkeys(generation.suite for generation in generations)
    found = {name: by_question(one for one in generations if one.suite == name) for name in names}
    return {name: _whole(questions) for name, questions in found.items()}


def _whole(questions: Mapping[str, list[Generation]]) -> dict[str, list[Generation]]:
    most = max(map(len, questions.values()))
    return {question: own for question, own in questions.items() if len(own) == most}


def paired_difference(
    name: str, first: Mapping[str, Sequence[Generation]], second: Mapping[str, Sequence[Generation]]
) -> PairedDifference:
    """Two runs of one suite, question by question.

    Args:
        name: name of the suite.
        first: question -> answers of run A.
        second: the same of run B.

    Raises:
        ValueError: if they have no question in common, or one with different references.
    """
    for question in first:
        if question in second and first[question][0].reference != second[question][0].reference:
            raise ValueError(
                f"{question} has the reference {first[question][0].reference!r} in one run and "
                f"{second[question][0].reference!r} in the other; compare runs on the same data"
            )
    try:
        return compare(_shares(first), _shares(second))
    except ValueError as error:
        raise ValueError(f"suite {name}: {error}") from error


def _shares(questions: Mapping[str, Sequence[Generation]]) -> dict[str, float]:
    return {question: sum(one.correct for one in own) / len(own) for question, own in questions.items()}


def _cells(name: str, found: PairedDifference) -> list[str]:
    return [
        name,
        str(found.num_questions),
        f"{100 * found.first:.1f} %",
        f"{100 * found.second:.1f} %",
        points(found),
        str(found.better),
        str(found.worse),
        "-" if found.detectable is None else f"{100 * found.detectable:.1f}",
    ]


def _panel(found: Mapping[str, PairedDifference]) -> Panel:
    """Each suite as an upright interval at a place of its own, and a line where there is no difference."""
    places = {name: float(number) for number, name in enumerate(found, start=1)}
    return Panel(
        title="B less A, with 95 % intervals",
        x_label="suite, in the order of the table",
        y_label="difference (percentage points)",
        series={
            **{
                name: ([places[name]] * 3, [100 * own.low, 100 * own.difference, 100 * own.high])
                for name, own in found.items()
            },
            "no difference": ([0.0, len(found) + 1.0], [0.0, 0.0]),
        },
    )
