"""`thoughtcache train --baseline`: the same run with LoRA_c, LoRA under the same window without any memory.

It is a run of its own in the folder `baseline` of the run, with the same questions, samples of the teacher, stages,
steps, seeds and options of the learner. Its rows stand in the table of before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from thoughtcache.config import ThoughtConfig
from thoughtcache.planning.setting import plain_lora
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.folder import RunFolder
from thoughtcache.recipes.run.settings import adapter_settings

FOLDER = "baseline"
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
    begun = (Path(run.output_dir) / "run.json").is_file()
    return RunFolder(
        run.output_dir,
        {**described, **OWN, "output_dir": run.output_dir, "thought": adapter_settings(thought)},
        resume=run.resume and begun,
        overwrite=run.overwrite,
        **settings,
    )
