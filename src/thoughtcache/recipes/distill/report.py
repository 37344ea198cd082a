"""What a distillation prints and draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.recipes.run.folder import PhaseResult
from thoughtcache.report.plots import Panel
from thoughtcache.report.tables import print_wide


def _won(table: Sequence[dict[str, Any]], row: dict[str, Any]) -> float:
    """The share of what the window costs the base that is gone; negative where an adapter does harm."""
    return 1.0 - float(row["after"]) / float(table[0]["after"])


def print_tables(
    table: Sequence[dict[str, Any]],
    beside: Sequence[dict[str, Any]],
    phases: dict[str, PhaseResult],
    console: Console,
) -> None:
    """What every stage won, and how the adapter compares with slots of as many numbers."""
    texts = len(table[0]["by_text"])
    shown = Table(title=f"KL to the base with its full cache, nats per token, {texts} held-out texts")
    for name in ("stage", "after the first eviction (95 % interval)", "won back", "before it", "minutes"):
        shown.add_column(name, justify="left" if name == "stage" else "right")
    for row in table:
        minutes = f"{phases[row['stage']]['seconds'] / 60:.1f}" if row["stage"] in phases else ""
        shown.add_row(
            row["stage"],
            f"{row['after']:.4f} ({row['low']:.4f}-{row['high']:.4f})",
            f"{100 * _won(table, row):.0f} %",
            f"{row['before']:.4f}",
            minutes,
        )
    print_wide(shown, console)
    if not beside:
        return
    shown = Table(title="the base with as many numbers as slots instead, on the same tokens")
    for name in ("cache", "KL (95 % interval)", "won back", "adapter minus this (95 % interval over texts)"):
        shown.add_column(name, justify="left" if name == "cache" else "right")
    for row in beside:
        shown.add_row(
            row["arm"],
            f"{row['after']:.4f} ({row['low']:.4f}-{row['high']:.4f})",
            f"{100 * _won(table, row):.0f} %",
            "{mean:+.4f} ({low:+.4f} to {high:+.4f})".format(**row["adapter_minus_this"]),
        )
    print_wide(shown, console)


def paired(table: Sequence[dict[str, Any]], row: dict[str, Any]) -> dict[str, float]:
    """The last row of a table minus another one, text by text: the mean and its 95 % interval."""
    gaps = [one - other for one, other in zip(table[-1]["by_text"], row["by_text"], strict=True)]
    low, high = mean_interval(gaps)
    return {"mean": sum(gaps) / len(gaps), "low": low, "high": high}


LABELS = {
    "transfer": "share of the lost attention that is missing",
    "recall": "cross-entropy (nats per token)",
    "logits": "KL to the full cache (nats per token)",
}
"""The loss of each kind of stage."""


def panels_of(
    phases: dict[str, PhaseResult], table: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]]
) -> list[Panel]:
    """The loss of every stage, and the held-out texts after each."""
    panels = []
    for name, phase in phases.items():
        points = phase["losses"]
        series = {name: ([float(x) for x, _ in points], [float(y) for _, y in points])}
        label = LABELS[name.split("-", 1)[1]]
        panels.append(Panel(title=name, x_label="optimiser step", y_label=label, series=series))
    stages = [float(number) for number in range(len(table))]
    held = {"held-out texts": (stages, [float(row["after"]) for row in table])}
    held |= {row["arm"]: (stages, [float(row["after"])] * len(stages)) for row in beside}
    panels.append(
        Panel(title="after each stage", x_label="stages", y_label=LABELS["logits"], series=held, from_zero=True)
    )
    return panels
