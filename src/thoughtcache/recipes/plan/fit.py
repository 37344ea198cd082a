"""Refuse a training run that would not fit, before its weights are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from rich.console import Console
from transformers import PretrainedConfig

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import learner_options
from thoughtcache.planning.fit import DoesNotFitError, check_fit
from thoughtcache.planning.setting import PlanSetting, nearest_planned, not_planned
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.report.plan import print_plans
from thoughtcache.report.progress import plain_line

TRAIN_OPTIONS = {"batch": "--grpo-batch-size", "group": "--group-size"}
DISTILL_OPTIONS = {"batch": "--distill-batch-size"}


def refuse_what_does_not_fit(
    run: RunConfig,
    thought: ThoughtConfig,
    model: PretrainedConfig,
    prompts: Sequence[Sequence[int]],
    console: Console,
    *,
    available_bytes: int | None = None,
) -> None:
    """Plan every phase of the run; a refusal prints the table first. `run.force` lets everything through.

    Args:
        run: the run.
        thought: the adapter.
        model: configuration of the base.
        prompts: token ids of all prompts; the longest one counts.
        console: where the table goes.
        available_bytes: what may be used; None asks the device.

    Raises:
        DoesNotFitError: if a phase needs more than is available; the message names the total, what is available, the
            largest part and the setting to change.
    """
    if run.force:
        return
    if run.thinking is not None:
        plain_line(console, f"plan: --thinking {run.thinking} is not planned, so nothing says whether this run fits")
        return
    missing = not_planned(thought)
    if missing:
        plain_line(console, f"plan: without what {missing} needs, which is not planned yet")
        thought = nearest_planned(thought)
    for setting, names in _phases(run, _shared(run, thought, model, prompts)):
        try:
            check_fit(setting, available_bytes=available_bytes, option_names=names, whole_groups=setting.group > 1)
        except DoesNotFitError as error:
            print_plans({"this run": error.plan}, error.available_bytes, "memory by phase", console)
            raise DoesNotFitError(f"{error}, or pass --force", error.plan, error.available_bytes) from error


def _phases(run: RunConfig, shared: PlanSetting) -> Iterator[tuple[PlanSetting, Mapping[str, str]]]:
    """The setting to plan for each phase, and the options that set its batch."""
    if run.distill_steps:
        yield replace(shared, objective="distill", batch=run.distill_batch_size, group=1), DISTILL_OPTIONS
    if run.grpo_steps:
        grpo = replace(shared, batch=run.grpo_batch_size, group=run.group_size)
        yield replace(grpo, beta=run.beta, reuse=run.reuse_rollout), TRAIN_OPTIONS


def _shared(
    run: RunConfig, thought: ThoughtConfig, model: PretrainedConfig, prompts: Sequence[Sequence[int]]
) -> PlanSetting:
    lengths = {len(prompt) for prompt in prompts}
    return PlanSetting(
        model=model,
        thought=thought,
        prompt_tokens=max(lengths),
        max_new_tokens=run.max_new_tokens,
        dtype=run.dtype,
        load_in_4bit=run.load_in_4bit,
        pack_weights=run.pack_weights,
        unequal_prompts=len(lengths) > 1,
        device_type="cuda" if torch.cuda.is_available() else "cpu",
        **learner_options(run),
    )
