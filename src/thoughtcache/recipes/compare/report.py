"""Tables, CSV files and the picture of a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from thoughtcache.recipes.compare.rows import Mean, Row
from thoughtcache.report.plots import Panel, Series
from thoughtcache.report.tables import MISSING

LOWEST_DRAWN = -100.0
"""What makes a layer worse by more than the window's own loss is drawn here, in percent."""


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table per window, the lowest divergence first."""
    found = []
    for window in dict.fromkeys(row.window for row in rows):
        of_window = sorted((row for row in rows if row.window == window), key=lambda row: row.kl[0])
        slots = of_window[0].slots
        beside = f", {slots} slots" if slots != window else ""
        table = Table(title=f"window {window}{beside}; means and 95 % intervals over {of_window[0].texts} texts")
        table.add_column("policy")
        for name in (
            "KL to the full cache (nats per token)", "minus sliding", "lost attention given back (mean of layers)",
            "worst to best layer", "tokens/s", "time, sliding = 1", "evicting", "peak MiB", "keeps KiB",
        ):  # fmt: skip
            table.add_column(name, justify="right")
        for row in of_window:
            table.add_row(
                row.policy,
                _mean(row.kl),
                _mean(row.minus_sliding),
                _percent(row.share),
                f"{100 * min(row.layers):.0f} to {100 * max(row.layers):.0f} %",
                f"{row.speed:.0f}",
                MISSING if row.slower is None else f"{row.slower:.2f}",
                f"{100 * row.evicting:.1f} %",
                MISSING if row.peak_mib is None else f"{row.peak_mib:.0f}",
                f"{row.kept_bytes / 1024:.0f}",
            )
        found.append(table)
    return found


def comparison_csv(rows: Sequence[Row]) -> str:
    """One line per window and policy."""
    intervals = ("kl", "minus_sliding", "share")
    single = ("window", "slots", "policy", "texts", "speed", "slower", "evicting", "peak_mib", "kept_bytes")
    head = [*single, *(f"{name}{end}" for name in intervals for end in ("", "_low", "_high"))]
    body = [
        [getattr(row, name) for name in single] + [value for name in intervals for value in getattr(row, name)]
        for row in rows
    ]
    return _csv([head, *body])


def layers_csv(rows: Sequence[Row]) -> str:
    """One line per window, policy and layer."""
    head = ["window", "slots", "policy", "layer", "lost", "share"]
    body = [
        [row.window, row.slots, row.policy, layer, lost, share]
        for row in rows
        for layer, (lost, share) in enumerate(zip(row.lost, row.layers, strict=True))
    ]
    return _csv([head, *body])


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Divergence by window, if there are several, and for every window the share that comes back by layer."""
    windows = list(dict.fromkeys(row.window for row in rows))
    policies = list(dict.fromkeys(row.policy for row in rows))
    divergence: dict[str, Series] = {}
    for policy in policies:
        own = sorted((row for row in rows if row.policy == policy), key=lambda row: row.window)
        divergence[policy] = ([float(row.window) for row in own], [row.kl[0] for row in own])
    by_window = Panel(
        title="divergence from the full cache",
        x_label="window (thoughts)",
        y_label="KL (nats per token)",
        series=divergence,
        from_zero=True,
    )
    found = [by_window] if len(windows) > 1 else []
    for window in windows:
        series: dict[str, Series] = {
            row.policy: (
                [float(layer) for layer in range(len(row.layers))],
                [max(LOWEST_DRAWN, 100 * share) for share in row.layers],
            )
            for row in rows
            if row.window == window
        }
        title = f"attention given back, window {window} (-100: or less)"
        found.append(Panel(title=title, x_label="layer", y_label="share of what is lost (%)", series=series))
    return found


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _mean(value: Mean) -> str:
    return f"{value[0]:.4f} ({value[1]:.4f} to {value[2]:.4f})"


def _percent(value: Mean) -> str:
    return f"{100 * value[0]:.0f} % ({100 * value[1]:.0f} to {100 * value[2]:.0f})"
