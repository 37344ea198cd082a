"""What a run folder knows of an adapter: how it was trained, and what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoughtcache.recipes.before_after import FULL, START, WINDOWED
from thoughtcache.recipes.load_adapter import WEIGHTS
from thoughtcache.recipes.run.settings import file_identity
from thoughtcache.tasks.data.datasets import SUFFIXES

Row = tuple[str, str]
LAST = "adapter"
ORDER = (FULL, WINDOWED, START, "after distillation", "after GRPO")
"""Rows of a table of before and after; results.json sorts them by name."""
_PLACES = (LAST, "grpo/adapter", "distill/adapter")
_SHARED = ("dtype", "load_in_4bit", "max_new_tokens", "thinking", "seed")
_STAGES = {
    "distill_steps": (
        "distillation",
        ("distill_steps", "distill_batch_size", "distill_learning_rate", "distill_memory_learning_rate"),
    ),
    "grpo_steps": (
        "GRPO",
        (
            "grpo_steps", "group_size", "grpo_batch_size", "gradient_accumulation", "grpo_learning_rate",
            "grpo_memory_learning_rate", "beta",
            "reward", "reward_weight",
        ),
    ),
}  # fmt: skip
_EITHER = ("temperature", "learning_rate_scheduler", "gradient")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run that made an adapter.

    Attributes:
        folder: the run folder.
        place: where in it the adapter lies: "adapter" at the end, or the stage that it ended.
        run: what it was asked for.
        results: what it wrote at its end; None if it did not get there.
    """

    folder: Path
    place: str
    run: dict[str, Any]
    results: dict[str, Any] | None


def find_record(adapter: Path, run: str | None) -> RunRecord | None:
    """The run that made an adapter; None if none is named and none is around it.

    Args:
        adapter: folder of the adapter.
        run: the run folder; None looks at the two folders around the adapter.

    Raises:
        ValueError: if the named folder is no run folder, holds other weights than the adapter's, or is damaged.
    """
    folders = [adapter.resolve().parent, adapter.resolve().parent.parent] if run is None else [Path(run)]
    folder = next((one for one in folders if (one / "run.json").is_file()), None)
    if folder is None:
        if run is None:
            return None
        raise ValueError(f"{run} is no run folder (no run.json); give the --output-dir of training, or leave out --run")
    own = file_identity(adapter / WEIGHTS)
    files = [(place, folder / place / WEIGHTS) for place in _places(folder)]
    place = next((name for name, file in files if file.is_file() and file_identity(file) == own), None)
    if place is None:
        if run is None:
            return None
        raise ValueError(
            f"the run in {run} did not make the adapter in {adapter}: no adapter of it has these weights, so that its "
            "figures are of another one; name the right --run, or leave it out"
        )
    return RunRecord(
        folder=folder, place=place, run=_read(folder / "run.json") or {}, results=_read(folder / "results.json")
    )


def _places(folder: Path) -> list[str]:
    others = sorted(str(file.parent.relative_to(folder)) for file in folder.glob(f"*/adapter/{WEIGHTS}"))
    return [*_PLACES, *(place for place in others if place not in _PLACES)]


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); export without it by another --run, or repair it") from error
    return found if isinstance(found, dict) else None


def training_rows(record: RunRecord) -> list[Row]:
    """How it was trained, as (name, value); paths of this machine become the last part of their name."""
    run = record.run
    rows = [("stage", "the end of the run" if record.place == LAST else record.place.split("/")[0])]
    rows += [(name, _name(run[name])) for name in ("dataset", "text", "recipe") if run.get(name)]
    if run.get("dataset") and _name(run["dataset"]) == run["dataset"]:
        rows.append(("split", str(run.get("split"))))
    if run.get("instruction"):
        rows.append(("instruction", str(run["instruction"])))
    stages = [names for steps, (_, names) in _STAGES.items() if run.get(steps)]
    names = [name for own in stages for name in own] + ([*_EITHER] if stages else []) + [*_SHARED]
    rows += [(name, str(run[name])) for name in names if run.get(name) is not None and run[name] is not False]
    if run.get("adapter"):
        rows.append(("started from", "another adapter"))
    versions = ((record.results or {}).get("environment") or {}).get("versions") or {}
    return rows + ([("versions", ", ".join(f"{name} {value}" for name, value in versions.items()))] if versions else [])


def _name(value: Any) -> str:
    """A file or folder by its name alone; a data set of the hub and any other text as it is."""
    path = Path(str(value))
    is_file = path.expanduser().exists() or path.is_absolute() or path.suffix in SUFFIXES
    return path.name if is_file else str(value)


def measured_rows(record: RunRecord) -> tuple[str, list[str], list[list[str]]] | None:
    """(what was measured, header, rows) of a table; None if the run measured nothing."""
    results = record.results or {}
    asked = results.get("before_after")
    if asked:
        count = _num_asked(record.folder)
        told = (
            f"{'Held-out questions' if count is None else f'{count} held-out questions'} of the training data, greedy"
        )
        order = [name for name in ORDER if name in asked] + sorted(set(asked) - set(ORDER))
        rows = [[name, _percent(asked[name]["accuracy"]), f"{100 * asked[name]['truncated']:.0f} %"] for name in order]
        return told, ["who is asked", "right (95 %)", "cut"], rows
    texts = results.get("held_out")
    if texts:
        told = f"KL to the base with its full cache after the first eviction, {len(texts[0]['by_text'])} held-out texts"
        rows = [[one["stage"], f"{one['after']:.4f} ({one['low']:.4f}-{one['high']:.4f})"] for one in texts]
        return told, ["stage", "nats per token (95 %)"], rows
    return None


def _num_asked(folder: Path) -> int | None:
    files = sorted((folder / "phases").glob("ask-*.json"))
    found = _read(files[0]) if files else None
    return None if found is None else len(found["answers"])


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['value']:.1f} % ({100 * share['low']:.1f}-{100 * share['high']:.1f})"
