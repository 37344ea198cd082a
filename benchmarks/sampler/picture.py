"""The picture: speed and memory along a rollout per model, speed against batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from thoughtcache.report.plots import Panel, Series, plot_curves

MODEL_TITLES = {"tiny": "embedded reasoner", "smollm2": "SmolLM2-135M"}
KINDS = (
    ("speed", "speed along a rollout", "position in the rollout", "tokens per second"),
    ("memory", "memory along a rollout", "position in the rollout", "MiB over the model at rest"),
    ("batch", "speed with a full window", "batch", "tokens per second"),
)


def panels(records: Sequence[dict[str, Any]]) -> list[Panel]:
    """One row of panels per kind of curve, one column per whole model; what was not measured is left out."""
    found = []
    whole = [record for record in records if record["case"].get("layers") is None]
    for kind, subject, x_label, y_label in KINDS:
        for model, name in MODEL_TITLES.items():
            own = [record for record in whole if record["case"]["model"] == model]
            series = merged(kind, (record["curves"] for record in own))
            if any(len(x) > 1 for x, _ in series.values()):
                title = f"{name}: {subject}"
                labels = {"title": title, "x_label": x_label, "y_label": y_label}
                found.append(Panel(**labels, series=series, from_zero=True))
    return found


def merged(kind: str, curves: Iterable[dict[str, Series]]) -> dict[str, Series]:
    """The curves of a kind; points of one label are joined, longer curves replace shorter ones of the same label."""
    series: dict[str, Series] = {}
    for record in curves:
        for name, (x, y) in record.items():
            prefix, _, label = name.partition(": ")
            if prefix != kind:
                continue
            if label in series and len(x) == 1:
                series[label] = [*series[label][0], *x], [*series[label][1], *y]
            elif label not in series or x[-1] > series[label][0][-1]:
                series[label] = x, y
    return series


def draw(records: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """The picture, if there is anything to see."""
    found = panels(records)
    return plot_curves(path, found) if found else None
