"""How an adapter was trained, for the card: settings of the stages that made it, and the steps that they took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thoughtcache.recipes.distill.recipe import KINDS, Stage
from thoughtcache.recipes.export.names import is_on_hub, last_part, public_name
from thoughtcache.recipes.export.run_record import GRPO_PREFIX, RunRecord
from thoughtcache.recipes.run.folder import STEPS

Row = tuple[str, str]
_SHARED = ("dtype", "load_in_4bit", "max_new_tokens", "thinking", "seed")
_EITHER = ("temperature", "learning_rate_scheduler", "gradient")
_STAGES = {
    "distill": ("distill_batch_size", "distill_learning_rate", "distill_memory_learning_rate"),
    "grpo": (
        "group_size", "grpo_batch_size", "gradient_accumulation", "grpo_learning_rate", "grpo_memory_learning_rate",
        "beta", "reward", "reward_weight",
    ),
}  # fmt: skip


def training_rows(record: RunRecord) -> list[Row]:
    """How it was trained, as (name, value); paths of this machine become the last part of their name."""
    rows = [("stage", "the end of the run" if record.at_end else record.stage)]
    rows += _embedded_rows(record) if record.is_embedded else _own_rows(record)
    versions = ((record.results or {}).get("environment") or {}).get("versions") or {}
    return rows + ([("versions", ", ".join(f"{name} {value}" for name, value in versions.items()))] if versions else [])


def _own_rows(record: RunRecord) -> list[Row]:
    run = record.run
    dataset, text, recipe = run.get("dataset"), run.get("text"), run.get("recipe")
    rows: list[Row] = []
    if dataset:
        rows += [("dataset", public_name(dataset)), *([("split", str(run.get("split")))] if is_on_hub(dataset) else [])]
    if text:
        rows.append(("text", last_part(text)))
    if isinstance(recipe, list):
        rows.append(("recipe", recipe_words(recipe[: len(record.phases)])))
    if run.get("instruction"):
        rows.append(("instruction", str(run["instruction"])))
    for stage, phase in record.phases.items():
        steps = phase.get(STEPS, run.get(f"{stage}_steps"))
        if steps is not None:
            rows.append((f"{stage}_steps", str(steps)))
        rows += _set(run, _STAGES.get(stage, ()))
    rows += _set(run, (*(_EITHER if _STAGES.keys() & record.phases.keys() else ()), *_SHARED))
    return [*rows, ("started from", "another adapter")] if run.get("adapter") else rows


def _set(run: dict[str, Any], names: Sequence[str]) -> list[Row]:
    return [(name, str(run[name])) for name in names if run.get(name) is not None and run[name] is not False]


def recipe_words(recipe: Sequence[dict[str, Any]]) -> str:
    """The stages of a recipe with their steps: `transfer 200, logits 100`."""
    return ", ".join(f"{one['kind']} {one.get('num_steps') or _own_steps(one['kind'])}".strip() for one in recipe)


def _own_steps(kind: str) -> int | str:
    return Stage(kind=kind).num_steps if kind in KINDS else ""


def _embedded_rows(record: RunRecord) -> list[Row]:
    """The embedded job is fixed: of its options only these count, and its steps are those that its phases logged."""
    run = record.run
    rows = [("job", "the embedded one"), ("task", str(run["task"])), ("seed", str(run.get("seed")))]
    if run.get("quick"):
        rows.append(("quick", "True"))
    for name, phase in record.phases.items():
        kind = "grpo" if name.startswith(GRPO_PREFIX) else "distill"
        logged = phase.get("rewards") or phase.get("curve") or []
        if "start" in phase:
            rows.append(("started from", f"{phase['start']} of {name.removeprefix(GRPO_PREFIX)}"))
        if logged:
            rows.append((f"{kind}_steps of {name}", str(logged[-1][0])))
    return rows
