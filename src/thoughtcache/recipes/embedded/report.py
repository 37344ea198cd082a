"""The files that the embedded job leaves behind: the table, the learning curves and results.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.evaluation.accuracy import Accuracy
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.report.files import replace_file
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import plain_line
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import ResultRow, markdown_table, print_table


def write_report(
    folder: Path,
    run: RunConfig,
    rows: dict[str, dict[str, Any]],
    grpo: dict[str, dict[str, Any]],
    titles: dict[str, str],
    elapsed_seconds: float,
    console: Console,
    *,
    note: str | None = None,
) -> dict[str, Any]:
    """Write table.md, curves.png and results.json into the folder and print the table.

    Args:
        folder: the run folder.
        run: what was asked for.
        rows: result of every evaluated or distilled system.
        grpo: result of every GRPO run.
        titles: names for people, by system; GRPO runs under `grpo_NAME`.
        elapsed_seconds: wall-clock time of this call, phases from an earlier call not included.
        console: where the table goes.
        note: what a reader has to know about the figures; it stands beside them everywhere.
    """
    table = [_row(titles[name], result) for name, result in rows.items()]
    for name, result in grpo.items():
        start = {**result, "accuracy": result["before"], "seconds": {}}
        title = titles[f"grpo_{name}"]
        shared = {key: rows[name][key] for key in ("window", "kv_cache_kib", "flops_per_token", "parameters")}
        table.append(_row(f"{title}, start of GRPO", {**start, **shared, "peak_memory_mib": None}))
        table.append(_row(f"{title}, after GRPO", {**result, **shared}))
    print_table(table, title=f"{run.task}, test split, n = {run.evaluation_size}, seed {run.seed}", console=console)
    if note is not None:
        plain_line(console, note)
    replace_file(folder / "table.md", (markdown_table(table) + (f"\n{note}\n" if note else "")).encode())
    curves = plot_curves(folder / "curves.png", _panels(rows, grpo, titles))
    payload = {
        "run": asdict(run),
        **({} if note is None else {"note": note}),
        "environment": environment(),
        "systems": rows,
        "grpo": grpo,
        "elapsed_seconds": elapsed_seconds,
    }
    results = write_results(folder / "results.json", payload)
    console.print(f"table: {folder / 'table.md'}\ncurves: {curves}\nresults: {results}", soft_wrap=True)
    return payload


def _row(name: str, result: dict[str, Any]) -> ResultRow:
    return ResultRow(
        name=name,
        accuracy=Accuracy(**result["accuracy"]),
        window=result["window"],
        peak_memory_mib=result["peak_memory_mib"],
        kv_cache_kib=result["kv_cache_kib"],
        flops_per_token=result["flops_per_token"],
        seconds=result["seconds"],
        parameters=result["parameters"],
    )


def _panels(rows: dict[str, dict[str, Any]], grpo: dict[str, dict[str, Any]], titles: dict[str, str]) -> list[Panel]:
    def columns(points: list[list[Any]]) -> tuple[list[float], list[float]]:
        return [float(x) for x, _ in points], [float(y) for _, y in points]

    distilled = {titles[name]: columns(row["curve"]) for name, row in rows.items() if "curve" in row}
    rewards = {titles[name]: columns(row["rewards"]) for name, row in grpo.items()}
    return [
        Panel(
            title="Cache distillation",
            x_label="optimiser step",
            y_label="validation accuracy at the window (%)",
            series=distilled,
        ),
        Panel(
            title="GRPO from a partly distilled start",
            x_label="optimiser step",
            y_label="mean reward of the sampled batch (%)",
            series=rewards,
        ),
    ]
