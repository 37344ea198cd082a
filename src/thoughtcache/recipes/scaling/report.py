"""The table, the CSV file, the picture and the numbers of `thoughtcache scale`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.recipes.evaluate.arms import Arm
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.several_report import labels
from thoughtcache.recipes.evaluate.table import percent, points, without_empty
from thoughtcache.recipes.scaling.points import Axis, Point
from thoughtcache.report.files import replace_file
from thoughtcache.report.plots import Panel, Series, plot_curves
from thoughtcache.report.progress import plain_line
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import markdown, print_cells

HEADER = (
    "cache", "suite", "", "factor", "accuracy (95 %)", "less the first (95 %)", "cut", "tokens", "evictions",
    "seconds", "peak MiB",
)  # fmt: skip
APART = 1.2
"""Ticks stand at lengths that differ by at least this factor."""


def write_report(
    folder: Path,
    run: EvalRun,
    arms: Sequence[Arm],
    found: Sequence[Point],
    axis: Axis,
    how: str,
    console: Console,
) -> dict[str, Any]:
    """Print the table and write table.md, scale.csv, scale.png and results.json.

    Args:
        folder: the folder of the run.
        run: what all points share.
        arms: the arms, whose names are those of the points.
        found: the points.
        axis: what the curves are over.
        how: how the points were sampled, in a few words.
        console: where the table goes.
    """
    several = len({point.suite for point in found}) > 1
    wanted = [name or axis.column for name in HEADER]
    header, rows = without_empty(wanted, [_cells(point, several) for point in found])
    print_cells(str(run.model or "the packaged reasoner"), header, rows, console)
    beside = f"; differences are those to {arms[0].name!r} at the same place, question by question"
    plain_line(console, how + (beside if len(arms) > 1 else ""))
    replace_file(folder / "table.md", markdown(header, rows).encode())
    replace_file(folder / "scale.csv", _csv(found).encode())
    names = dict(zip((arm.name for arm in arms), labels(arms), strict=True))
    picture = plot_curves(folder / "scale.png", panels(found, names, axis))
    payload: dict[str, Any] = {
        "environment": environment(),
        "run": asdict(run),
        "over": axis.label,
        "how": how,
        "caches": [{"name": arm.name, "settings": arm.settings} for arm in arms],
        "points": [{**asdict(point), "difference": _difference(point)} for point in found],
    }
    written = write_results(folder / "results.json", payload)
    files = (("table", folder / "table.md"), ("numbers", folder / "scale.csv"), ("picture", picture))
    for label, path in (*files, ("results", written)):
        console.print(f"{label}: {path}", soft_wrap=True)
    return payload


def panels(found: Sequence[Point], names: dict[str, str], axis: Axis) -> list[Panel]:
    """Accuracy over the length for every suite; the share that was cut; seconds and memory where they were measured.

    Args:
        found: the points.
        names: name of an arm -> its label in a legend.
        axis: what the curves are over.
    """
    drawn = []
    for suite in dict.fromkeys(point.suite for point in found):
        own = [point for point in found if point.suite == suite]
        series, lows = _series(own, names, lambda p: 100 * p.accuracy.value), {}
        for label in series:
            shares = [point.accuracy for point in own if names[point.cache] == label]
            lows[label] = ([100 * share.low for share in shares], [100 * share.high for share in shares])
        title = f"{suite}: right answers, with 95 % intervals"
        drawn.append(_panel(axis, own, title, "right answers (%)", series, intervals=lows))
        drawn.append(
            _panel(axis, own, f"{suite}: answers that were cut", "cut (%)", _series(own, names, lambda p: 100 * p.cut))
        )
    first = [point for point in found if point.suite == found[0].suite]
    lengths = {point.length for point in first}
    measured: tuple[tuple[str, str, Callable[[Point], float | None]], ...] = (
        ("Seconds of sampling", "seconds", lambda p: p.seconds),
        ("Peak memory of sampling", "MiB over the weights", lambda p: p.peak_memory_mib),
    )
    for title, y_label, value in measured:
        known = [point for point in first if value(point) is not None]
        if len({point.length for point in known}) == len(lengths) > 1:
            drawn.append(_panel(axis, known, title, y_label, _series(known, names, value)))
    return drawn


def _panel(
    axis: Axis,
    found: Sequence[Point],
    title: str,
    y_label: str,
    series: dict[str, Series],
    intervals: dict[str, Series] | None = None,
) -> Panel:
    base = next((f", 1x = {point.length / point.factor:g}" for point in found if point.factor), "")
    return Panel(
        title=title,
        x_label=f"{axis.label}{base}",
        y_label=y_label,
        series=series,
        intervals=intervals or {},
        from_zero=True,
        x_ticks={float(length): str(length) for length in _apart([point.length for point in found])},
        x_doubles=True,
    )


def _apart(lengths: Sequence[int]) -> list[int]:
    """The lengths that have room for a tick each, from the longest on."""
    kept: list[int] = []
    for length in sorted(set(lengths), reverse=True):
        if not kept or kept[-1] >= APART * length:
            kept.append(length)
    return kept[::-1]


def _series(found: Sequence[Point], names: dict[str, str], value: Callable[[Point], float | None]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for point in found:
        height = value(point)
        if height is not None:
            own = series.setdefault(names[point.cache], ([], []))
            own[0].append(float(point.length))
            own[1].append(height)
    return series


def _cells(point: Point, several_suites: bool) -> list[str]:
    return [
        point.cache,
        point.suite if several_suites else "",
        f"{point.length:,}",
        "" if point.factor is None else f"{point.factor:.3g}x",
        percent(point.accuracy),
        "" if point.less_first is None else points(point.less_first),
        f"{100 * point.cut:.1f} %",
        f"{point.tokens:,.0f}",
        f"{point.evictions:.1f}" if point.evictions else "",
        "" if point.seconds is None else f"{point.seconds:,.1f}",
        "" if point.peak_memory_mib is None else f"{point.peak_memory_mib:,.1f}",
    ]


def _csv(found: Sequence[Point]) -> str:
    """One line per point; empty for what is not known."""
    rows = [point.flat() for point in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _difference(point: Point) -> float | None:
    return None if point.less_first is None else point.less_first.difference
