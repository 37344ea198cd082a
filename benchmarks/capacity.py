"""How many facts fit into how large a memory? One memory per size, each taught codes of one to thirty-two words.

    python -m benchmarks.capacity --model FOLDER --output runs/capacity --features 4 8 16 32 64 128

Every size is `thoughtcache recall` in a folder of its own, and `thoughtcache probe --what capacity`, which asks for
1, 2, 4 to 32 facts at once and puts the full cache, the window, and windows with the memory's numbers as slots beside
it.

Left behind: for every size the folders of both commands, and above them `table.md`, `capacity.png` and `results.json`.
A call that was stopped goes on when it is made again; with other `--features` it adds them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import thoughtcache as tc
from benchmarks.scaling import check_settings
from thoughtcache.recipes.probe.run import run_probe
from thoughtcache.recipes.probe.subject import ProbeRun
from thoughtcache.recipes.recall import RecallRun, run_recall
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import markdown, print_cells


def teach(features: int, folder: Path, options: argparse.Namespace, console: Console) -> None:
    """Teach a memory of one size; only its own texts are measured here."""
    thought = tc.ThoughtConfig(r=1, window=options.window, memory="attention", memory_features=features)
    run = RecallRun(
        model=options.model, output_dir=str(folder), steps=options.steps, learning_rate=options.learning_rate,
        code_length=options.facts, min_code_length=1, max_evictions=options.max_evictions,
        max_before=options.max_before, growth_steps=options.growth_steps, codes=options.codes,
        distances=(options.distance,), before=(0,), baselines=False, save_every=20, seed=options.seed,
        resume=(folder / "run.json").is_file(),
    )  # fmt: skip
    run_recall(run, thought, console)


def measure(adapter: Path, folder: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """What `thoughtcache probe --what capacity` says of a memory; it is read where it is there."""
    run = ProbeRun(
        model=options.model, adapter=str(adapter), what=("capacity",), output_dir=str(folder), codes=options.codes,
        code_length=options.facts, distances=(options.distance,), policies=tuple(options.policies), seed=options.seed,
        batch_size=16,
    )  # fmt: skip
    if not (folder / "probe.json").is_file():
        run_probe(run, console)
    found: dict[str, Any] = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    return found


def write_summary(output: Path, measured: dict[int, dict[str, Any]], options: Any, console: Console) -> None:
    """Facts that are remembered by the size of the memory: table, picture, numbers."""
    header = ["memory", "tokens' worth", "cache", *(f"of {one['num_facts']}" for one in _any(measured))]
    rows, x = [], [found["state_tokens"] for found in measured.values()]
    most: dict[str, list[dict[str, Any]]] = {}
    for features, found in measured.items():
        for name, values in found["capacity"].items():
            cells = [f"{one['remembered']:.1f} ({one['low']:.1f}-{one['high']:.1f})" for one in values]
            rows.append([f"{features} features", f"{found['state_tokens']:.1f}", name, *cells])
            # Windows are as wide as the memory is large, so that their names differ by size.
            policy = name.split(", ")[-1] if ", " in name else None
            kind = name if policy is None else f"as many slots more, {policy}"
            most.setdefault(kind, []).append(values[-1])
    print_cells(None, header, rows, console)
    (output / "table.md").write_text(markdown(header, rows), encoding="utf-8")
    panel = Panel(
        title=f"window {options.window}, {options.distance} evictions later",
        x_label="size of the memory (tokens' worth of keys and values)",
        y_label=f"facts that are remembered, of {options.facts}",
        series={name: (x, [one["remembered"] for one in values]) for name, values in most.items()},
        intervals={
            name: ([one["low"] for one in values], [one["high"] for one in values]) for name, values in most.items()
        },
        from_zero=True,
    )
    picture = plot_curves(output / "capacity.png", [panel])
    by_size = {str(features): found for features, found in measured.items()}
    write_results(output / "results.json", {"sizes": by_size, "settings": vars(options), "environment": environment()})
    console.print(f"results: {output / 'results.json'}\npicture: {picture}", soft_wrap=True)


def _any(measured: dict[int, dict[str, Any]]) -> Sequence[dict[str, Any]]:
    values: Sequence[dict[str, Any]] = next(iter(measured.values()))["capacity"]["adapter"]
    return values


def main() -> None:
    """Teach and measure memories of all sizes, and compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id of the base")
    parser.add_argument("--output", default="runs/bench/capacity", help="folder of the study")
    parser.add_argument("--features", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128], help="of memories")
    parser.add_argument("--facts", type=int, default=32, help="most facts at once")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=2e-2)
    parser.add_argument("--max-evictions", type=int, default=8, help="longest distance in training")
    parser.add_argument("--max-before", type=int, default=8, help="most text before codes, in evictions")
    parser.add_argument("--growth-steps", type=int, default=50)
    parser.add_argument("--distance", type=int, default=4, help="evictions between a code and its question")
    parser.add_argument("--codes", type=int, default=32, help="codes per figure")
    parser.add_argument("--policies", nargs="+", default=["sliding", "h2o"], help="of the wider windows")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console, output = Console(), Path(options.output)
    check_settings(output, {name: value for name, value in vars(options).items() if name not in ("output", "features")})
    measured = {}
    for features in options.features:
        folder = output / f"features-{features}"
        console.rule(f"{features} features")
        teach(features, folder / "recall", options, console)
        measured[features] = measure(folder / "recall" / "teach" / "adapter", folder / "probe", options, console)
        write_summary(output, measured, options, console)


if __name__ == "__main__":
    main()
