"""`python -m benchmarks [--output FILE]`: run all benchmarks, print them, write a JSON file."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from benchmarks.decoding import benchmark_decoding
from thoughtcache.report.results import environment, write_results


def main() -> None:
    """Run everything on the embedded reasoner."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--output", default="runs/bench/results.json", help="results file")
    options = parser.parse_args()
    console = Console()
    measured = benchmark_decoding(console)
    table = Table(title="decoding, embedded reasoner, ratios within one run")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in measured.items():
        table.add_row(name, f"{value:.3g}")
    console.print(table)
    path = write_results(options.output, {"decoding": measured, "environment": environment()})
    console.print(f"results: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
