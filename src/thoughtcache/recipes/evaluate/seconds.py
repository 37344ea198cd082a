"""Where the seconds of an evaluation went, if one call sampled all answers: of earlier ones nothing is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thoughtcache.report.phases import FILES, PhaseSeconds, write_phase_seconds


def write_seconds(folder: Path, arms: Mapping[str, tuple[Mapping[str, Any], int]]) -> None:
    """Write time.md, time.png and time.json of the arms that are known; older ones go if none is.

    Args:
        folder: the folder.
        arms: name -> ("last_call" and "phases" of what was sampled, answers that there are).
    """
    known = [
        PhaseSeconds(name=name, seconds=sampled["phases"], tokens=float(sampled["last_call"]["tokens"]))
        for name, (sampled, num_answers) in arms.items()
        if sampled.get("phases") is not None and sampled["last_call"]["answers"] == num_answers
    ]
    if known:
        write_phase_seconds(folder, known)
        return
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
