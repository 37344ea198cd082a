"""Where the seconds of a step or an evaluation go: a table, a picture with stacked bars, and all numbers as JSON.

In a trainer's log the seconds of a phase are with those of the phases inside it. Here every phase is without them, so
that a column adds up to the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from thoughtcache.measuring.phase_timer import OUTERMOST, PHASES, own_seconds
from thoughtcache.report.files import replace_file
from thoughtcache.report.plots import PALETTE
from thoughtcache.report.results import write_results
from thoughtcache.report.tables import MISSING, markdown, print_cells

PREFIX = "time/"
TIME_TABLE = "time.md"
FILES = (TIME_TABLE, "time.json", "time.png")
"""What is written into a folder."""
LABELS = {
    "prefill": "sample: prefill",
    "decode": "sample: decode",
    "draw": "sample: draw tokens",
    "hear": "sample: scores of the policy",
    "evict": "sample: choose and record",
    "move": "sample: move what stays",
    "absorb": "sample: absorb",
    "rollout": "sample: rest, or waiting for a backend",
    "rewards": "rewards, or checks of answers",
    "reference": "reference",
    "replay": "learner: forward",
    "backward": "learner: backward",
    "optimizer": "optimizer",
    "other": "other",
}
"""What a phase is called, in the order of the table."""
HATCHES = ("", "//", "..")
NEGLIGIBLE = 0.0005
"""A phase with a smaller share of every step is left out of the table and the picture, not of the JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSeconds:
    """Seconds of a step, as a mean over several, or of an evaluation.

    Attributes:
        name: what was run.
        seconds: of every phase of `LABELS`, without the phases inside it.
        tokens: sampled tokens.
        steps: steps that the mean is over.
    """

    name: str
    seconds: dict[str, float]
    tokens: float
    steps: int = 1

    @property
    def total(self) -> float:
        """Seconds of all phases together."""
        return sum(self.seconds.values())


def step_seconds(name: str, log: Sequence[Mapping[str, Any]], completions: int) -> PhaseSeconds | None:
    """The means over the records of a trainer's log that carry seconds; None if none does.

    Args:
        name: what was run.
        log: one record per optimiser step.
        completions: completions of a step.
    """
    records = [record for record in log if all(f"{PREFIX}{phase}" in record for phase in (*PHASES, "step"))]
    if not records:
        return None
    mean = {phase: fmean(float(record[PREFIX + phase]) for record in records) for phase in (*PHASES, "step")}
    seconds = own_seconds(mean) | {"other": mean["step"] - sum(mean[phase] for phase in OUTERMOST)}
    lengths = [float(record["completions/mean_length"]) for record in records]
    return PhaseSeconds(
        name=name,
        steps=len(records),
        seconds={phase: seconds[phase] for phase in LABELS},
        tokens=completions * fmean(lengths),
    )


def write_phase_seconds(
    folder: str | Path, arms: Sequence[PhaseSeconds], more: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Write time.json, time.md and time.png into a folder.

    Args:
        folder: made if it is missing.
        arms: the columns, at least one.
        more: further rows of the table below the seconds, label -> a cell per arm.

    Returns:
        The path of the table.
    """
    folder = Path(folder)
    payload = [
        {
            "name": arm.name, "steps": arm.steps, "seconds": arm.seconds, "tokens": arm.tokens,
            "total_seconds": arm.total,
        }
        for arm in arms
    ]  # fmt: skip
    write_results(folder / "time.json", {"arms": payload})
    replace_file(folder / "time.png", _picture(arms))
    return replace_file(folder / TIME_TABLE, markdown(*phase_cells(arms, more or {})).encode())


def print_phase_seconds(
    arms: Sequence[PhaseSeconds], console: Console, more: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Print the table.

    Args:
        arms: the columns.
        console: where it goes.
        more: as in `write_phase_seconds`.
    """
    print_cells("seconds by phase", *phase_cells(arms, more or {}), console)


def phase_cells(arms: Sequence[PhaseSeconds], more: Mapping[str, Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and body: a row per phase with its seconds and share, then the sum, tokens per second and `more`."""
    body = [
        [LABELS[phase], *(f"{arm.seconds[phase]:.3f} ({100 * arm.seconds[phase] / arm.total:.1f} %)" for arm in arms)]
        for phase in _shown(arms)
    ]
    sampled = [sum(arm.seconds[phase] for phase in LABELS if LABELS[phase].startswith("sample")) for arm in arms]
    body += [
        ["all", *(f"{arm.total:.3f}" for arm in arms)],
        ["sampled tokens", *(f"{arm.tokens:,.0f}" for arm in arms)],
        [
            "sampled tokens per second of sampling",
            *(f"{arm.tokens / spent:,.1f}" if spent else MISSING for arm, spent in zip(arms, sampled, strict=True)),
        ],
        *([label, *cells] for label, cells in more.items()),
    ]
    return ["seconds (share)", *(arm.name for arm in arms)], body


def _shown(arms: Sequence[PhaseSeconds]) -> list[str]:
    return [phase for phase in LABELS if any(arm.seconds[phase] > NEGLIGIBLE * arm.total for arm in arms)]


def _picture(arms: Sequence[PhaseSeconds]) -> bytes:
    """One bar per arm, its phases on top of each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 + 1.3 * len(arms), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    below = [0.0] * len(arms)
    looks = {phase: number for number, phase in enumerate(LABELS)}
    for phase in _shown(arms):
        heights = [max(arm.seconds[phase], 0.0) for arm in arms]
        axes.bar(
            [arm.name for arm in arms],
            heights,
            bottom=below,
            width=0.6,
            label=LABELS[phase],
            color=PALETTE[looks[phase] % len(PALETTE)],
            hatch=HATCHES[looks[phase] // len(PALETTE) % len(HATCHES)],
            edgecolor="white",
        )
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_ylabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=9, frameon=False)
    picture = BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    return picture.getvalue()
