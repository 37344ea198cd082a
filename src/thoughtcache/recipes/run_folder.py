"""A run folder that remembers which phases are done, so that an interrupted run goes on where it stopped.

Layout: `phases/NAME.json` (what a finished phase returned), `run.json` (the configuration), and whatever the phases
write themselves. Only JSON is read back.
"""

from __future__ import annotations

import json
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
        overwrite: forget finished phases.

    Raises:
        ValueError: if the folder holds another run, or holds this one and neither flag is given.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.path = Path(path)
        described = json.loads(json.dumps(config, sort_keys=True))
        marker = self.path / "run.json"
        if marker.is_file() and not overwrite:
            if not resume:
                raise ValueError(
                    f"{self.path} already holds a run; add --resume to go on, or --overwrite to start anew"
                )
            stored = json.loads(marker.read_text())
            different = sorted(key for key in described if stored.get(key) != described[key])
            if different:
                raise ValueError(
                    f"{self.path} holds a run with other settings ({', '.join(different)}); "
                    "choose another --output-dir, or --overwrite to start anew"
                )
        elif resume and not marker.is_file():
            raise ValueError(f"{self.path} holds no run to resume; leave out --resume")
        if overwrite:
            for phase in (self.path / "phases").glob("*.json"):
                phase.unlink()
        self.resume = resume
        (self.path / "phases").mkdir(parents=True, exist_ok=True)
        write_results(marker, described)

    def phase(self, name: str, work: Callable[[Path, bool], PhaseResult]) -> PhaseResult:
        """The result of `work(folder, resume)`, from disk if the phase was finished before.

        Args:
            name: of the phase and its folder.
            work: gets a folder of its own and whether that may hold checkpoints to continue; returns JSON data.
        """
        record = self.path / "phases" / f"{name}.json"
        if record.is_file():
            done: PhaseResult = json.loads(record.read_text())
            return done
        folder = self.path / name
        result = work(folder, self.resume and any(folder.glob("checkpoint-*")))
        write_results(record, result)
        return result
