"""Refuse a training run that would not fit, before its weights are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from transformers import PretrainedConfig

from thoughtcache.config import RunConfig, ThoughtConfig
from thoughtcache.planning.fit import DoesNotFitError, check_fit
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.report.plan import print_plans

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
        DoesNotFitError: with the total, what is available, the largest part and the setting to change.
    """
    if run.force:
        return
    phases = []
    if run.distill_steps:
        phases.append((_setting(run, thought, model, prompts, run.distill_batch_size, 1), DISTILL_OPTIONS))
    if run.grpo_steps:
        phases.append((_setting(run, thought, model, prompts, run.grpo_batch_size, run.group_size), TRAIN_OPTIONS))
    for setting, names in phases:
        try:
            check_fit(
                setting, available_bytes=available_bytes, option_names=names, whole_groups=names is TRAIN_OPTIONS
            )
        except DoesNotFitError as error:
            print_plans({"this run": error.plan}, error.available_bytes, "memory by phase", console)
            raise DoesNotFitError(f"{error}, or pass --force", error.plan, error.available_bytes) from error


def _setting(
    run: RunConfig,
    thought: ThoughtConfig,
    model: PretrainedConfig,
    prompts: Sequence[Sequence[int]],
    batch: int,
    group: int,
) -> PlanSetting:
    lengths = {len(prompt) for prompt in prompts}
    return PlanSetting(
        model=model,
        thought=thought,
        prompt_tokens=max(lengths),
        max_new_tokens=run.max_new_tokens,
        batch=batch,
        group=group,
        dtype=run.dtype,
        load_in_4bit=run.load_in_4bit,
        recompute=run.recompute,
        chunk_tokens=run.chunk_tokens,
        kv_log=run.kv_log,
        gradient=run.gradient,
        reuse=run.reuse_rollout,
        beta=run.beta,
        unequal_prompts=len(lengths) > 1,
        device_type="cuda" if torch.cuda.is_available() else "cpu",
    )
