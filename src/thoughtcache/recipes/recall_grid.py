"""Teach and measure with several learning rates and seeds: recall is learned in a narrow band of learning rates.

Every cell is a recall run in a folder of its own, so that an interrupted grid goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thoughtcache.config import ThoughtConfig
from thoughtcache.recipes.recall import FORGETTING_X, FORGETTING_Y, RecallRun, by_text_before, run_recall
from thoughtcache.recipes.run.folder import WRITING_REMEDY
from thoughtcache.report.files import writing
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide

LAST_SHARE = 0.1
"""Share of the steps, the last ones, whose mean loss tells one learning rate from another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One recall run of a grid.

    Attributes:
        learning_rate: its peak learning rate.
        seed: its seed.
        losses: pairs of a step and its loss, in nats per token.
        rows: what the adapter remembers, one value per text before a code and distance: `num_before`, and the fields of
            `studies.passcode.Recall`.
    """

    learning_rate: float
    seed: int
    losses: list[list[int | float]]
    rows: list[dict[str, Any]]

    @property
    def last_loss(self) -> float:
        """Mean loss of the last steps."""
        losses = [loss for _, loss in self.losses]
        count = max(1, round(LAST_SHARE * len(losses)))
        return sum(losses[-count:]) / count

    @property
    def shares(self) -> list[float]:
        """Shares of whole codes that are remembered, one per row."""
        return [row["right_codes"] / row["codes"] for row in self.rows]


def run_recall_grid(
    run: RecallRun,
    thought: ThoughtConfig,
    *,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    console: Console | None = None,
) -> dict[str, Any]:
    """Teach and measure once for every learning rate and seed; returns what is written to grid.json.

    Args:
        run: the settings that all share; its `learning_rate` and `seed` are not read. Arms without a memory are
            measured in the first cell only.
        thought: settings of the adapter.
        learning_rates: peak learning rates.
        seeds: seeds.
        console: where progress goes.

    Raises:
        ValueError, OSError: as `run_recall`; and for an empty or repeated list, or a grid that teaches nothing.
    """
    console = console or Console()
    for name, values in (("learning_rate", learning_rates), ("seed", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must be one value or several different ones, got {list(values)}")
    if run.steps == 0:
        raise ValueError("several learning rates or seeds with steps=0 teach nothing; set steps, or give one seed")
    folder, cells = Path(run.output_dir), list[Cell]()
    beside: dict[str, Any] = {}
    for learning_rate in learning_rates:
        for seed in seeds:
            path = folder / f"learning-rate-{learning_rate:g}-seed-{seed}"
            console.rule(f"learning rate {learning_rate:g}, seed {seed}")
            one = replace(
                run,
                learning_rate=learning_rate,
                seed=seed,
                output_dir=str(path),
                baselines=run.baselines and not cells,
                resume=run.resume and (path / "run.json").is_file(),
            )
            payload = run_recall(one, thought, console)
            recall = dict(payload["recall"])
            rows = recall.pop("adapter")
            beside.update(recall)
            losses = payload["phases"]["teach"]["losses"]
            cells.append(Cell(learning_rate=learning_rate, seed=seed, losses=losses, rows=rows))
    summaries = [_summary(cells, value) for value in learning_rates]
    payload = {
        "environment": environment(),
        "run": payload["run"],
        "cells": [_record(cell) for cell in cells],
        "by_learning_rate": summaries,
        "beside": beside,
    }
    with writing(folder, WRITING_REMEDY):
        write_results(folder / "grid.json", payload)
        plot_curves(folder / "grid.png", _panels(cells))
    _print(cells, summaries, console)
    console.print(f"results: {folder / 'grid.json'}\npicture: {folder / 'grid.png'}", soft_wrap=True)
    return payload


def _record(cell: Cell) -> dict[str, Any]:
    return {
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "last_loss": cell.last_loss,
        "losses": cell.losses,
        "recall": cell.rows,
    }


def _summary(cells: Sequence[Cell], learning_rate: float) -> dict[str, Any]:
    """What all seeds of a learning rate have in common: means, and the extremes."""
    own = [cell for cell in cells if cell.learning_rate == learning_rate]
    by_distance = [
        {
            "num_before": row["num_before"],
            "num_evictions": row["num_evictions"],
            "mean": sum(shares) / len(shares),
            "lowest": min(shares),
            "highest": max(shares),
        }
        for row, shares in zip(own[0].rows, zip(*(cell.shares for cell in own), strict=True), strict=True)
    ]
    loss = sum(cell.last_loss for cell in own) / len(own)
    return {"learning_rate": learning_rate, "seeds": len(own), "last_loss": loss, "recall": by_distance}


def _print(cells: Sequence[Cell], summaries: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(
        title="whole passcodes that are remembered, by evictions since they were told (+ evictions' text before)"
    )
    for name in ("learning rate", "seed", "last loss (nats)"):
        table.add_column(name, justify="right")
    for row in cells[0].rows:
        before = f" + {row['num_before']}" if row["num_before"] else ""
        table.add_column(f"{row['num_evictions']}{before}", justify="right")
    for summary in summaries:
        own = [cell for cell in cells if cell.learning_rate == summary["learning_rate"]]
        for cell in own:
            shares = [f"{100 * share:.0f} %" for share in cell.shares]
            table.add_row(f"{cell.learning_rate:g}", str(cell.seed), f"{cell.last_loss:.3f}", *shares)
        if len(own) > 1:
            shares = [
                f"{100 * one['mean']:.1f} % ({100 * one['lowest']:.0f}-{100 * one['highest']:.0f})"
                for one in summary["recall"]
            ]
            table.add_row(f"{summary['learning_rate']:g}", "mean (range)", f"{summary['last_loss']:.3f}", *shares)
    print_wide(table, console)
    if len(summaries) > 1:
        best = min(summaries, key=lambda summary: summary["last_loss"])
        console.print(f"lowest loss on the texts of training: learning rate {best['learning_rate']:g}")


def _panels(cells: Sequence[Cell]) -> list[Panel]:
    losses, curves = {}, {}
    for cell in cells:
        name = f"{cell.learning_rate:g}, seed {cell.seed}"
        losses[name] = ([float(step) for step, _ in cell.losses], [float(loss) for _, loss in cell.losses])
        for before, rows in by_text_before(cell.rows).items():
            shares = [100 * row["right_codes"] / row["codes"] for row in rows]
            label = f"{name}, after {before}" if before else name
            curves[label] = ([float(row["num_evictions"]) for row in rows], shares)
    return [
        Panel(title="teaching", x_label="optimiser step", y_label="cross-entropy (nats per token)", series=losses),
        Panel(title="forgetting", x_label=FORGETTING_X, y_label=FORGETTING_Y, series=curves, from_zero=True),
    ]
