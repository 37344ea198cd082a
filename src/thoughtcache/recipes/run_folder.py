"""A run folder that remembers which phases are done, so that an interrupted run goes on where it stopped.

Layout: `phases/NAME.json` (what a finished phase returned), `run.json` (the configuration), and whatever the phases
write themselves. Only JSON is read back. Nothing is written or removed before the first phase begins, so that input
which turns out to be wrong leaves an older run as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thoughtcache.report.results import write_results

PhaseResult = dict[str, Any]


class RunFolder:
    """Phases of one run by name.

    Args:
        path: the folder.
        config: what the run was asked for; a folder of another configuration is not touched.
        resume: go on with the finished phases that are there.
        overwrite: forget finished phases and the checkpoints of an older run.

    Raises:
        ValueError: if the folder holds another run, or holds this one and neither flag is given, or is a file.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.path = Path(path)
        self.resume = resume
        self._overwrite = overwrite
        self._described = json.loads(json.dumps(config, sort_keys=True))
        self._begun = False
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; choose another --output-dir")
        marker = self._marker
        if marker.is_file() and not overwrite:
            if not resume:
                raise ValueError(
                    f"{self.path} already holds a run; add --resume to go on, or --overwrite to start anew"
                )
            stored = _read_object(marker)
            # The folder may have been moved, or be named relative to another one.
            compared = self._described.keys() - {"output_dir"}
            different = sorted(key for key in compared if stored.get(key) != self._described[key])
            if different:
                raise ValueError(
                    f"{self.path} holds a run with other settings ({', '.join(different)}); "
                    "choose another --output-dir, or --overwrite to start anew"
                )
        elif resume and not marker.is_file():
            raise ValueError(f"{self.path} holds no run to resume; leave out --resume")

    @property
    def _marker(self) -> Path:
        return self.path / "run.json"

    def _begin(self) -> None:
        """Make the folder this run's own, once."""
        if self._begun:
            return
        if self._overwrite and self._marker.is_file():
            for phase in (self.path / "phases").glob("*.json"):
                phase.unlink()
            # Or a later `resume` would go on with the weights of the older run.
            for state in list(self.path.rglob("checkpoint-*/trainer_state.json")):
                shutil.rmtree(state.parent)
        (self.path / "phases").mkdir(parents=True, exist_ok=True)
        write_results(self._marker, self._described)
        self._begun = True

    def phase(self, name: str, work: Callable[[Path, bool], PhaseResult]) -> PhaseResult:
        """The result of `work(folder, resume)`, from disk if the phase was finished before.

        Args:
            name: of the phase and its folder.
            work: gets a folder of its own and whether that may hold checkpoints to continue; returns JSON data.
        """
        self._begin()
        record = self.path / "phases" / f"{name}.json"
        if record.is_file():
            return _read_object(record)
        folder = self.path / name
        result = work(folder, self.resume and any(folder.glob("checkpoint-*")))
        write_results(record, result)
        return result


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged ({error}); use --overwrite to start anew") from error
    return content
