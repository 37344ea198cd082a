"""A run folder that remembers which phases are done, so that an interrupted run goes on where it stopped.

Layout: `phases/NAME.json` (what a finished phase returned), `phases/NAME.samples` (rollouts that are drawn once),
`run.json` (the configuration), and whatever the phases write themselves. Nothing is written or removed before the first
phase begins, so that input which turns out to be wrong leaves an older run as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from thoughtcache.recipes.run.settings import Difference, differences
from thoughtcache.report.results import write_results
from thoughtcache.train.checkpoints import checkpoints
from thoughtcache.train.trainer_options.stop_between_steps import raise_late_interrupt

PhaseResult = dict[str, Any]
STEPS = "steps"
MARKER = "run.json"
MOST_SHOWN = 4
SPACE_REMEDY = "free some space or choose another --output-dir"
WRITING_REMEDY = f"{SPACE_REMEDY}; --resume goes on with what was saved"


class RunFolder:
    """Phases of one run by name.

    Args:
        path: the folder.
        config: what the run was asked for; a folder of another configuration is not touched.
        resume: go on with the finished phases that are there.
        overwrite: forget finished phases and the checkpoints of an older run.
        free: settings that may be another one when a run goes on.
        growing: counts that may be larger when a run goes on.
        defaults: what a setting was in runs that were begun before there was one.
        belonging: folders of runs that belong to the one that is there; `overwrite` forgets them with it.

    Raises:
        ValueError: if the folder holds another run, or holds this one and neither flag is given, or is a file.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        free: Collection[str] = (),
        growing: Collection[str] = (),
        defaults: Mapping[str, Any] | None = None,
        belonging: Sequence[Path] = (),
    ) -> None:
        self.path = Path(path)
        self.resume = resume
        self.stored: dict[str, Any] | None = None
        self._overwrite = overwrite
        self._belonging = tuple(belonging)
        # The folder may have been moved, or be named relative to another one.
        self._free = {*free, "output_dir"}
        self._growing = set(growing)
        self._defaults = json.loads(json.dumps(dict(defaults or {})))
        self._described: dict[str, Any] = {}
        self._begun = False
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; choose another --output-dir")
        if self._marker.is_file() and not overwrite:
            if not resume:
                raise ValueError(
                    f"{self.path} already holds a run; add --resume to go on, or --overwrite to start anew"
                )
            self.stored = _read_object(self._marker)
        elif resume:
            raise ValueError(f"{self.path} holds no run to resume; leave out --resume")
        self.describe(config)

    @property
    def _marker(self) -> Path:
        return self.path / MARKER

    @property
    def described(self) -> dict[str, Any]:
        """The settings that are written to run.json."""
        return dict(self._described)

    def describe(self, config: Mapping[str, Any]) -> None:
        """Add to what the run was asked for; for what is known only when data or model were looked at.

        Raises:
            ValueError: if a run that goes on was asked for something else.
        """
        added = json.loads(json.dumps(dict(config), sort_keys=True))
        self._described |= added
        if self.stored is not None:
            found = differences(self.stored, added, free=self._free, growing=self._growing, defaults=self._defaults)
            if found:
                raise ValueError(
                    f"{self.path} holds a run with other settings ({', '.join(name for name, _, _ in found)}); "
                    f"choose another --output-dir, or --overwrite to start anew{_values(found)}"
                )

    def samples_file(self, name: str) -> Path:
        """The file in which rollouts of that name are kept once they are drawn."""
        return self.path / "phases" / f"{name}.samples"

    def has_begun(self, name: str) -> bool:
        """Whether a run that goes on finished this phase or left a checkpoint of it."""
        return self.stored is not None and (self._record(name).is_file() or bool(checkpoints(self.path / name)))

    def phase(
        self, name: str, work: Callable[[Path, bool], PhaseResult], *, num_steps: int | None = None
    ) -> PhaseResult:
        """The result of `work(folder, resume)`, from disk if the phase was finished before.

        Args:
            name: name of the phase and of its folder.
            work: gets a folder of its own and whether that may hold checkpoints to continue; returns JSON data.
            num_steps: optimiser steps of the phase; one that was finished with another number goes on.

        Raises:
            KeyboardInterrupt: when the result is written, if a Ctrl-C came behind the last step.
        """
        self.begin()
        record = self._record(name)
        if record.is_file():
            result = _read_object(record)
            if num_steps is None or result.get(STEPS, num_steps) == num_steps:
                return result
        folder = self.path / name
        result = work(folder, self.resume and bool(checkpoints(folder)))
        if num_steps is not None:
            result = {**result, STEPS: num_steps}
        write_results(record, result)
        raise_late_interrupt()
        return result

    def _record(self, name: str) -> Path:
        return self.path / "phases" / f"{name}.json"

    def begin(self) -> None:
        """Make the folder this run's own, once; a phase does so by itself."""
        if self._begun:
            return
        if self._overwrite and self._marker.is_file():
            for folder in (*self._belonging, self.path):
                for kept in ("*.json", "*.samples"):
                    for file in (folder / "phases").glob(kept):
                        file.unlink()
            for folder in self._belonging:
                (folder / MARKER).unlink(missing_ok=True)
            # Or a later `resume` would go on with the weights of the older run.
            for state in list(self.path.rglob("checkpoint-*/trainer_state.json")):
                shutil.rmtree(state.parent)
        (self.path / "phases").mkdir(parents=True, exist_ok=True)
        write_results(self._marker, self._described)
        self._begun = True


def _values(found: list[Difference]) -> str:
    """The values before and now, as text; empty if they are many."""
    if len(found) > MOST_SHOWN:
        return ""
    changes = [f"{name}={before!r} then, {name}={now!r} now" for name, before, now in found]
    return f" ({'; '.join(changes)})"


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged ({error}); use --overwrite to start anew") from error
    return content
