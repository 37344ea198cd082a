"""Shows where memory went during training: a timeline and the peaks of the phases, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.results import write_results

PREFIX, SUFFIX = "memory/", "_mib_max"


def write_memory_profile(
    folder: str | Path, timeline: Sequence[tuple[float, float, str]], log: Sequence[Mapping[str, Any]]
) -> Path:
    """Write memory.json and memory.png into the folder.

    Args:
        folder: made if it is missing.
        timeline: (seconds, MiB in use, phase), in order.
        log: the trainer's records with `step` and `memory/PHASE_mib_max`.

    Returns:
        The path of the picture.
    """
    folder = Path(folder)
    names = dict.fromkeys(name for record in log for name in record if name.startswith(PREFIX))
    peaks = {
        name.removeprefix(PREFIX).removesuffix(SUFFIX): [
            (float(record["step"]), float(record[name])) for record in log if name in record
        ]
        for name in names
    }
    write_results(folder / "memory.json", {"timeline": list(timeline), "peaks_mib_by_phase": peaks})
    panels = [
        Panel(
            title="Memory in use",
            x_label="seconds since the start of training",
            y_label="MiB",
            series={"all phases": ([row[0] for row in timeline], [row[1] for row in timeline])},
        ),
        Panel(
            title="Peak by phase",
            x_label="optimiser step",
            y_label="MiB",
            series={name: ([x for x, _ in points], [y for _, y in points]) for name, points in peaks.items()},
        ),
    ]
    return plot_curves(folder / "memory.png", panels)
