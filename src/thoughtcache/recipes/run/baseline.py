"""`thoughtcache train --baseline`: the same run with LoRA_c, LoRA under the same window without any memory.

It is a run of its own in the folder `baseline` of the run, with the same questions, samples of the teacher, stages,
steps, seeds and options of the learner. Its rows stand in the table of before and after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from thoughtcache.config import ThoughtConfig
from thoughtcache.planning.setting import plain_lora
from thoughtcache.recipes.before_after import row_phase
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.folder import MARKER, STEPS, PhaseResult, RunFolder
from thoughtcache.recipes.run.settings import FREE_OPTIONS, adapter_settings, differences

FOLDER = "baseline"
AFTER_DISTILLING, AFTER_GRPO = "after distillation", "after GRPO"
LORA = "LoRA_c"


def check_baseline(run: RunConfig, thought: ThoughtConfig) -> None:
    """Refuse a baseline that would compare nothing, before anything is read.

    Raises:
        ValueError: if the method is LoRA_c itself, nothing is evicted, or the run starts from a trained adapter.
    """
    if not run.baseline:
        return
    if thought.is_plain_lora:
        raise ValueError(
            "baseline=True changes nothing: the adapter of this run is plain LoRA without a memory, which is the "
            "baseline itself; leave it out, or choose another --preset"
        )
    if thought.window is None:
        raise ValueError(
            "baseline=True trains LoRA under the window, and --window none has none; give a window, or leave it out"
        )
    if run.adapter is not None:
        raise ValueError(
            "baseline=True trains LoRA from its start, and --adapter lets the run begin with a trained adapter, so "
            "that the two would not have learned equally long; leave out one of them"
        )


def check_asked(run: RunConfig, num_held_out: int) -> None:
    """Refuse a baseline without questions on which the two are compared.

    Raises:
        ValueError: if nothing is held out.
    """
    if run.baseline and not num_held_out:
        raise ValueError(
            "baseline=True compares with LoRA on held-out questions, and none are held out; set --held-out, give "
            "questions with reference answers, or leave it out"
        )


def announced(run: RunConfig, thought: ThoughtConfig) -> str:
    """What the baseline is and what it costs, in a line."""
    return (
        f"baseline: {LORA}, LoRA of rank {thought.r} under the same window without a memory, is trained after it in "
        f"{Path(run.output_dir) / FOLDER} with the same stages, steps and seeds, which doubles the time"
    )


def baseline_config(thought: ThoughtConfig) -> ThoughtConfig:
    """The adapter of the baseline: the same rank, targets and cache."""
    return plain_lora(thought, thought.window)


OWN: dict[str, Any] = {"baseline": False, "distill_memory_learning_rate": None, "grpo_memory_learning_rate": None}
"""Settings of the run of the baseline; learning rates of a memory have no meaning there."""


def baseline_run(run: RunConfig) -> RunConfig:
    """The run of the baseline.

    Args:
        run: the run that it stands beside, with what the planner has chosen for it.
    """
    return replace(run, output_dir=str(Path(run.output_dir) / FOLDER), **OWN)


def belonging(output_dir: str) -> list[Path]:
    """The folder of the baseline that belongs to the run in a folder; none if there is no run or no baseline of it.

    A run of other settings that somebody has put there does not belong to it.
    """
    own = Path(output_dir) / FOLDER
    try:
        main, lora = (json.loads((folder / MARKER).read_text()) for folder in (own.parent, own))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return []
    free = {*FREE_OPTIONS, *OWN, "output_dir", "thought", "distill_steps", "grpo_steps"}
    return [] if differences(main, lora, free=free) else [own]


def finished_rows(run: RunConfig) -> dict[str, PhaseResult]:
    """The rows of a baseline that was trained in an earlier call, for a run that goes on without asking for one.

    Empty if there is none, or a stage of it is missing or had another number of steps than the run has now.
    """
    found: dict[str, PhaseResult] = {}
    if not run.resume or run.baseline:
        return found
    for folder in belonging(run.output_dir):
        for name, steps in ((AFTER_DISTILLING, run.distill_steps), (AFTER_GRPO, run.grpo_steps)):
            record = folder / "phases" / f"{row_phase(name)}.json"
            row = json.loads(record.read_text()) if steps and record.is_file() else {}
            if steps and row.get(STEPS) != steps:
                return {}
            if steps:
                found[name] = row
    return found


def baseline_folder(run: RunConfig, thought: ThoughtConfig, described: Mapping[str, Any], **settings: Any) -> RunFolder:
    """The folder of the baseline, which goes on if it was begun.

    Args:
        run: its run.
        thought: its adapter.
        described: what the run that it stands beside is described by.
        settings: see `RunFolder`.

    Raises:
        ValueError: if it holds another run.
    """
    begun = (Path(run.output_dir) / MARKER).is_file()
    try:
        return RunFolder(
            run.output_dir,
            {**described, **OWN, "output_dir": run.output_dir, "thought": adapter_settings(thought)},
            resume=run.resume and begun,
            overwrite=run.overwrite,
            **settings,
        )
    except ValueError as error:
        fault = str(error).split(";")[0]
        raise ValueError(
            f"the baseline has no place: {fault}; move that folder away to train the baseline anew, or leave out "
            "--baseline"
        ) from error
