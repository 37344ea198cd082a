"""`python -m benchmarks.gpu`: what only a GPU can show; leaves gpu.json and a table in less than eight minutes.

On a machine without CUDA everything else runs at small sizes, and what needs CUDA says "not run".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.check import SIZES, Outcome
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.run import run_checks
from benchmarks.sampler.suite import number
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide

LIMIT_SECONDS = 450.0
LAST_WORDS = 90
"""Characters of a message in the table; all of it is in the file."""
COLOURS = {"passed": "green", "failed": "bold red", "error": "bold red", "not run": "yellow"}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default=found, help="what is there, by default")
    parser.add_argument("--size", choices=list(SIZES), help="full on CUDA, small on a CPU, by default")
    parser.add_argument(
        "--only", nargs="+", metavar="WORDS", default=[], help="checks whose names hold one of these, in this order"
    )
    parser.add_argument("--output", default="runs/gpu", help="folder for gpu.json and gpu.txt")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help="limit for all checks together")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; 1 if a check failed."""
    options = make_parser().parse_args(arguments)
    named = [check for word in options.only for check in CHECKS if word in check.name]
    chosen = list(dict.fromkeys(named)) if options.only else list(CHECKS)
    if not chosen:
        names = ", ".join(repr(check.name) for check in CHECKS)
        make_parser().error(f"--only {' '.join(options.only)} names no check; they are {names}")
    console, folder, size = Console(), Path(options.output), options.size
    size = size or ("full" if options.device == "cuda" else "small")
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    facts = {"device": device, "size": size, "environment": environment()}
    records: list[dict[str, Any]] = []

    def report(outcome: Outcome) -> None:
        console.print(f"{outcome.status}: {outcome.name} ({outcome.elapsed_seconds:.0f} s)", soft_wrap=True)
        if outcome.status == "error":
            console.print(outcome.message, soft_wrap=True, markup=False)
        figures = [{**asdict(figure), "verdict": figure.verdict()} for figure in outcome.figures]
        records.append({**asdict(outcome), "figures": figures})
        write_results(folder / "gpu.json", {**facts, "checks": records})

    outcomes = run_checks(chosen, device=options.device, size=size, limit_seconds=options.seconds, report=report)
    title = f"{device}, {size} sizes"
    print_wide(_table(title, outcomes), console)
    with (folder / "gpu.txt").open("w", encoding="utf-8") as file:
        print_wide(_table(title, outcomes), Console(file=file, width=140))
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in COLOURS}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    console.print(f"results: {folder / 'gpu.json'}, {folder / 'gpu.txt'}", soft_wrap=True)
    return int(bool(counts["failed"] or counts["error"]))


def _table(title: str, outcomes: Sequence[Outcome]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("check", "figure", "value", "unit", "limit", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    for outcome in outcomes:
        colour = COLOURS[outcome.status]
        last_words = outcome.message.splitlines()[-1][:LAST_WORDS] if outcome.message else ""
        table.add_row(outcome.name, last_words, "", "", "", f"[{colour}]{outcome.status}[/]")
        for figure in outcome.figures:
            table.add_row("", figure.name, number(figure.value), figure.unit, figure.target, figure.verdict())
        table.add_section()
    return table


if __name__ == "__main__":
    raise SystemExit(main())
