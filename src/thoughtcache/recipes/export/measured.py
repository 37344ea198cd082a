"""What a run measured of an adapter, for the card: rows of the base and of the stages that made it, no later ones."""

from __future__ import annotations

from typing import Any

from thoughtcache.recipes.before_after import FULL, START, WINDOWED
from thoughtcache.recipes.embedded.arms import TITLES
from thoughtcache.recipes.export.run_record import GRPO_PREFIX, RunRecord
from thoughtcache.recipes.run.folder import STEPS

Table = tuple[str, list[str], list[list[str]]]
_STAGES = {"after distillation": "distill", "after GRPO": "grpo"}
ORDER = (FULL, WINDOWED, START, *_STAGES)
"""Rows of a table of before and after; results.json sorts them by name."""


def measured_rows(record: RunRecord) -> Table | None:
    """(what was measured, header, rows) of a table; None if nothing was measured of this adapter."""
    if record.is_embedded:
        return _embedded(record)
    results = record.results or {}
    if results.get("before_after"):
        return _before_after(record, results)
    return _held_out(record, results) if results.get("held_out") else None


def _before_after(record: RunRecord, results: dict[str, Any]) -> Table | None:
    asked = results["before_after"]
    shown = [name for name in ORDER if name in asked and (name not in _STAGES or _holds(record, _STAGES[name]))]
    if record.stage not in (_STAGES.get(name) for name in shown):
        return None
    told = f"{sum(asked[shown[0]]['reasons'].values())} held-out questions of the training data, greedy"
    rows = [[name, _percent(**asked[name]["accuracy"]), f"{100 * asked[name]['truncated']:.0f} %"] for name in shown]
    return told, ["who is asked", "right (95 %)", "cut"], rows


def _holds(record: RunRecord, stage: str) -> bool:
    """Whether the figures of a stage are those of this adapter: it went through it, in as many steps."""
    measured = ((record.results or {}).get("phases") or {}).get(stage)
    own = record.phases.get(stage)
    return own is not None and measured is not None and own.get(STEPS) == measured.get(STEPS)


def _held_out(record: RunRecord, results: dict[str, Any]) -> Table | None:
    texts = results["held_out"]
    last = next((number for number, one in enumerate(texts) if one["stage"] == record.stage), None)
    if last is None:
        return None
    told = f"KL to the base with its full cache after the first eviction, {len(texts[0]['by_text'])} held-out texts"
    rows = [[one["stage"], f"{one['after']:.4f} ({one['low']:.4f}-{one['high']:.4f})"] for one in texts[: last + 1]]
    return told, ["stage", "nats per token (95 %)"], rows


def _embedded(record: RunRecord) -> Table | None:
    found = {}
    for name in ("base_full", "base_window", *record.phases):
        phase = record.phase(name) or {}
        title = TITLES.get(name, name)
        if name.startswith(GRPO_PREFIX) and "before" in phase:
            found[f"{title}, start of GRPO"] = phase["before"]
            title = f"{title}, after GRPO"
        if "accuracy" in phase:
            found[title] = phase["accuracy"]
    if "accuracy" not in record.phases[record.stage]:
        return None
    total = record.phases[record.stage]["accuracy"]["total"]
    rows = [[name, _percent(one["correct"] / one["total"], one["low"], one["high"])] for name, one in found.items()]
    told = f"{total} problems of the test split of the embedded task {record.run['task']}, greedy"
    return told, ["system", "right (95 %)"], rows


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % ({100 * low:.1f}-{100 * high:.1f})"
