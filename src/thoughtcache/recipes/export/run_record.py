"""What a run folder knows of an adapter: the stages that made it, their settings, and the figures that are its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoughtcache.recipes.load_adapter import WEIGHTS
from thoughtcache.recipes.run.settings import FREE_OPTIONS, differences, file_identity

LAST = "adapter"
GRPO_PREFIX = "grpo_"
_FREE, _GROWING = (*FREE_OPTIONS, "output_dir"), ("distill_steps", "grpo_steps", "steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run that made an adapter.

    Attributes:
        folder: the run folder.
        stage: the stage that ended with it; "" if the run trained nothing.
        at_end: whether it is what the run ended with.
        run: what the run was asked for; its numbers of steps may be those of a longer run that has not ended.
        phases: what the stages up to it returned, by name, in their order.
        results: what the run wrote at its end; None if it did not get there, or began anew since.
    """

    folder: Path
    stage: str
    at_end: bool
    run: dict[str, Any]
    phases: dict[str, dict[str, Any]]
    results: dict[str, Any] | None

    @property
    def is_embedded(self) -> bool:
        """Whether it was the embedded job, whose settings are not those of `run`."""
        return "task" in self.run and self.run.get("model") is None

    def phase(self, name: str) -> dict[str, Any] | None:
        """What any phase of the run returned; None if it did not end."""
        return _read(self.folder / "phases" / f"{name}.json")


def find_record(adapter: Path, run: str | None) -> RunRecord | None:
    """The run that made an adapter; None if none is named and none is around it.

    Args:
        adapter: folder of the adapter.
        run: the run folder; None looks at the two folders around the adapter.

    Raises:
        ValueError: if the named folder is no run folder, holds other weights than the adapter's, has begun anew since
            it made it, or is damaged.
    """
    folders = [adapter.resolve().parent, adapter.resolve().parent.parent] if run is None else [Path(run)]
    folder = next((one for one in folders if (one / "run.json").is_file()), None)
    if folder is None:
        if run is None:
            return None
        raise ValueError(f"{run} is no run folder (no run.json); give the --output-dir of training, or leave out --run")
    own = file_identity(adapter / WEIGHTS)
    files = [folder / LAST / WEIGHTS, *sorted(folder.glob(f"*/adapter/{WEIGHTS}"))]
    places = [file.parent for file in files if file.is_file() and file_identity(file) == own]
    record = _record(folder, adapter, places)
    if record is None and run is not None:
        why = "no adapter of it has these weights" if not places else "it has begun anew since"
        raise ValueError(
            f"the run in {run} did not make the adapter in {adapter}: {why}, so that its settings and figures are of "
            "another one; name the right --run, or leave it out"
        )
    return record


def _record(folder: Path, adapter: Path, places: list[Path]) -> RunRecord | None:
    """The record of an adapter that lies in these places; None if the run no longer says how it came there.

    Settings in `run.json` are those of a stage that has ended. A run that is begun anew forgets its stages, and leaves
    the adapter and the results of the older one until it has ones of its own: these two belong together.
    """
    run, results = _read(folder / "run.json") or {}, _read(folder / "results.json")
    at_end = folder / LAST in places
    stages = {place.parent.name: place for place in places if place != folder / LAST}
    ended = [name for name in _in_order(run, stages) if (folder / "phases" / f"{name}.json").is_file()]
    if ended:
        own = [name for name in ended if stages[name].resolve() == adapter.resolve()]
        stage = (own or ended)[-1]
        phases = {name: _read(folder / "phases" / f"{name}.json") or {} for name in _stages_up_to(run, stage)}
        belongs = results is not None and not differences(
            results.get("run") or {}, run, free=_FREE, growing=_GROWING
        )  # fmt: skip
        return RunRecord(
            folder=folder, stage=stage, at_end=at_end, run=run, phases=phases, results=results if belongs else None
        )
    if at_end and results is not None:
        phases = dict(results.get("phases") or {})
        stage = next(reversed(phases), "")
        return RunRecord(
            folder=folder, stage=stage, at_end=True, run=results.get("run") or {}, phases=phases, results=results
        )
    return None


def _stages(run: Mapping[str, Any]) -> list[str]:
    """Names of the stages of a run in their order; those of the embedded job are not one behind the other."""
    if isinstance(run.get("recipe"), list):
        return [f"{number}-{one['kind']}" for number, one in enumerate(run["recipe"], start=1)]
    return [name for name, steps in (("teach", "steps"), ("distill", "distill_steps"), ("grpo", "grpo_steps"))
            if run.get(steps)]  # fmt: skip


def _in_order(run: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    known = [name for name in _stages(run) if name in found]
    return [*known, *sorted(name for name in found if name not in known)]


def _stages_up_to(run: Mapping[str, Any], stage: str) -> list[str]:
    names = _stages(run)
    if stage in names:
        return names[: names.index(stage) + 1]
    return [stage.removeprefix(GRPO_PREFIX), stage] if stage.startswith(GRPO_PREFIX) else [stage]


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); export without it by another --run, or repair it") from error
    return found if isinstance(found, dict) else None
