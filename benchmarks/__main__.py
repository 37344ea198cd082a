"""`python -m benchmarks [decoding] [learner]`: run benchmarks, print them, leave JSON files and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import learner
from benchmarks.decoding import benchmark_decoding
from benchmarks.learner_case import LEARNERS
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide


def _decoding(console: Console, output: Path) -> None:
    measured = benchmark_decoding(console)
    table = Table(title="decoding, embedded reasoner, ratios within one run")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in measured.items():
        table.add_row(name, f"{value:.3g}")
    print_wide(table, console)
    path = write_results(output / "decoding.json", {"decoding": measured, "environment": environment()})
    console.print(f"results: {path}", soft_wrap=True)


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=["decoding", "learner"], help="decoding, learner; both by default")
    parser.add_argument("--output", default="runs/bench", help="folder for results")
    parser.add_argument("--cases", nargs="+", choices=list(learner.CASES), default=["quick"], help="learner: sizes")
    parser.add_argument(
        "--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS), help="learner: what to compare"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="learner: of the base")
    parser.add_argument("--threads", type=int, default=1, help="learner: PyTorch threads of each child process")
    options = parser.parse_args()
    unknown = set(options.names) - {"decoding", "learner"}
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}; choose from decoding and learner")
    console, output = Console(), Path(options.output)
    if "decoding" in options.names:
        _decoding(console, output)
    if "learner" in options.names:
        learner.run(console, options.cases, options.learners, options.threads, options.dtype, output)


if __name__ == "__main__":
    main()
