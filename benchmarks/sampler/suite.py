"""Run the measurements: gates first, every case in a child of its own, a table per name, JSON and a picture.

A case that fails is a FAIL in its table, and the others go on; a gate that fails ends the run without any figure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.sampler import sizes
from benchmarks.sampler.case import Case
from benchmarks.sampler.child import run_child
from benchmarks.sampler.figures import Figure, Measured
from benchmarks.sampler.picture import draw
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide

COLOURS = {"PASS": "green", "FAIL": "bold red"}


def run(
    console: Console,
    names: Sequence[str],
    output: Path,
    *,
    models: Sequence[str],
    folder: str | None,
    quick: bool = False,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Measure, print, and leave sampler.json and sampler.png.

    Args:
        console: where tables go.
        names: what to measure, of `sizes.NAMES`.
        output: folder.
        models: "tiny", "smollm2" or both; the latter needs `folder`.
        folder: of "smollm2".
        quick: small sizes, on the tiny model.
        threads: of every child.
        device: of the models.

    Raises:
        RuntimeError: if a gate is not green.
    """
    chosen = sizes.quick() if quick else sizes.full()
    shared = {"folder": folder, "threads": threads, "device": device}
    cases = {name: [replace(case, **shared) for case in chosen.get(name, []) if case.model in models] for name in names}
    used = [model for model in models if any(case.model == model for group in cases.values() for case in group)]
    for gate in sizes.gates(used):
        show(console, f"gate, {gate.model}", [(gate, run_child(replace(gate, **shared)))])
    records: list[dict[str, Any]] = []
    for name, group in cases.items():
        if not group:
            console.print(f"{name}: {why_nothing(quick, folder)}")
            continue
        results = [(case, attempt(console, name, case)) for case in group]
        show(console, name, results)
        records += [record(name, case, measured) for case, measured in results]
        write_results(output / "sampler.json", {"records": records, "environment": environment()})
    conclude(console, records)
    console.print(f"results: {output / 'sampler.json'}, {draw(records, output / 'sampler.png')}", soft_wrap=True)


def why_nothing(quick: bool, folder: str | None) -> str:
    """Why a name has no cases."""
    if quick:
        return "not among the quick sizes"
    return "SmolLM2 only; give --model FOLDER" if folder is None else "nothing for the chosen --models"


def attempt(console: Console, name: str, case: Case) -> Measured:
    """One child; its failure is a figure."""
    started = time.perf_counter()
    try:
        measured = run_child(case)
    except RuntimeError as error:
        measured = Measured(figures=[Figure(name=f"failed: {error}", value=math.nan, at_least=0.0)])
    console.print(f"{name}: {case.title}, {case.tokens} tokens: {time.perf_counter() - started:.0f} s", soft_wrap=True)
    return measured


def show(console: Console, name: str, results: Sequence[tuple[Case, Measured]]) -> None:
    """The table of a name."""
    table = Table(title=name, title_justify="left")
    for column in ("case", "figure"):
        table.add_column(column)
    for column in ("value", "lowest", "highest", "by CPU", "unit", "target", ""):
        table.add_column(column, justify="right" if column != "unit" else "left")
    for case, measured in results:
        for row, figure in enumerate(measured.figures):
            verdict = figure.verdict(judged=case.judged)
            cells = [number(value) for value in (figure.value, figure.low, figure.high, figure.by_cpu)]
            colour = COLOURS.get(verdict)
            styled = f"[{colour}]{verdict}[/]" if colour else verdict
            table.add_row(case.title if row == 0 else "", figure.name, *cells, figure.unit, figure.target, styled)
        table.add_section()
    print_wide(table, console)


def number(value: float | None) -> str:
    """Four digits, whole above a thousand; nothing for what is not there."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def record(name: str, case: Case, measured: Measured) -> dict[str, Any]:
    """For the file; of the folder its name only."""
    shown = replace(case, folder=None if case.folder is None else Path(case.folder).name)
    figures = [
        {**asdict(figure), "target": figure.target, "verdict": figure.verdict(judged=case.judged)}
        for figure in measured.figures
    ]
    return {
        "name": name,
        "case": asdict(shown),
        "figures": figures,
        "curves": measured.curves,
        "values": measured.values,
    }


def conclude(console: Console, records: Sequence[dict[str, Any]]) -> None:
    """How many targets were met, and every one that was not."""
    verdicts = [figure["verdict"] for entry in records for figure in entry["figures"]]
    console.print(f"targets: {verdicts.count('PASS')} PASS, {verdicts.count('FAIL')} FAIL")
    for entry in records:
        for figure in entry["figures"]:
            if figure["verdict"] == "FAIL":
                said = f"{entry['name']}, {entry['case']['model']}: {figure['name']} {number(figure['value'])}"
                console.print(f"FAIL: {said} (target {figure['target']})", soft_wrap=True, markup=False)
