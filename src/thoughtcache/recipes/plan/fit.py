"""Choose what a training run saves, and refuse one that would not fit, before its weights are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from transformers import PretrainedConfig

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import AUTO, SAVINGS, learner_options, left_to_the_planner, replay_options
from thoughtcache.planning.advice import Phases, runs_that_fit
from thoughtcache.planning.fit import (
    ACCUMULATION,
    MICRO_BATCH,
    NOTHING_HELPS,
    DoesNotFitError,
    changes,
    refusal,
    usable_here,
)
from thoughtcache.planning.plan import GIB, TEACHER_SAMPLES, Plan, make_plan
from thoughtcache.planning.savings import Savings, choose_savings
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.teacher import in_micro_batches, split_to_fit
from thoughtcache.recipes.plan.teacher import bounded_remedy, bounded_teacher_line, teacher_batch
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.report.plan import print_plans
from thoughtcache.report.plan_advice import price_lines
from thoughtcache.report.progress import plain_line

OPTIONS = {
    "grpo": {"batch": "--grpo-batch-size", "group": "--group-size", ACCUMULATION: "--gradient-accumulation"},
    "distill": {
        "batch": "--distill-batch-size",
        MICRO_BATCH: "--distill-micro-batch-size",
        "rollout_batch": "--teacher-batch-size",
    },
}
CHOSEN = (*SAVINGS, "teacher_batch_size", "distill_micro_batch_size")
"""Settings of a run that may be left to the planner."""
OTHER = {"grpo": "--distill-steps", "distill": "--grpo-steps"}


def fitted(
    run: RunConfig,
    thought: ThoughtConfig,
    model: PretrainedConfig,
    prompts: Sequence[Sequence[int]],
    console: Console,
    *,
    available_bytes: int | None = None,
    stored: Mapping[str, Any] | None = None,
    sampled: bool = False,
) -> tuple[RunConfig, list[str]]:
    """The run with what its settings leave to the planner, and a line about each of its choices, none if none was left.

    What it chooses: savings of the learner, texts that distillation's learner takes at once, and those that its teacher
    samples at once.

    A refusal prints a table, and what the changes cost that it names.

    Args:
        run: the run; with `force` it is not refused.
        thought: the adapter.
        model: configuration of the base.
        prompts: token ids of all prompts; the longest one counts.
        console: where the table goes.
        available_bytes: what may be used; None asks the device, and leaves a margin. Where nothing says what is free,
            as on macOS, nothing is refused, and a line says so.
        stored: what was chosen when a run that goes on began (`CHOSEN`); it is taken for what is left to the planner as
            long as it fits, so that it computes what an uninterrupted one would. None for a new run.
        sampled: whether a run that goes on has all texts of its teacher on disk, so that it samples none.

    Raises:
        DoesNotFitError: if a phase needs more than is available; the message names the total, what is available, the
            largest part and the settings to change.
    """
    free = left_to_the_planner(run)
    run = replace(run, **{name: getattr(replay_options(run), name) for name in SAVINGS})
    if run.thinking is not None:
        plain_line(console, f"plan: --thinking {run.thinking} is not planned, so nothing says whether this run fits")
        return run, []
    phases = planned_phases(run, thought, model, prompts)
    device_type = phases[0].device_type
    if available_bytes is None and not (run.force and device_type == "cpu"):
        available_bytes = usable_here(device_type)
    host_bytes = usable_here("cpu") if device_type == "cuda" else None
    splits = run.distill_micro_batch_size == AUTO
    if splits:
        phases = tuple(_split(phase, free, available_bytes, stored) for phase in phases)
    if sampled:
        phases = _sampled_before(phases)
    began = _as_it_began(phases[0], free, stored) if run.recompute else None
    keeps = began is not None and (run.force or _fits(began, phases, available_bytes, host_bytes))
    if began is not None and keeps:
        chosen, reason = began, "as the run began"
    else:
        chosen = choose_savings(phases, free, available_bytes=available_bytes, host_bytes=host_bytes)
        reason = "chosen by the planner"
    plans = [make_plan(chosen.of(phase)) for phase in phases]
    highest = max(plans, key=lambda plan: plan.total_bytes)
    if available_bytes is not None and highest.total_bytes > available_bytes and not run.force:
        raise _refused(phases, (*free, *([MICRO_BATCH] if splits else [])), highest, available_bytes, console)
    run = replace(run, **asdict(chosen))
    more: list[str] = []
    for phase in (chosen.of(phase) for phase in phases if phase.distills):
        line = _micro_batch_line(phase, stored) if splits else ""
        run = replace(run, distill_micro_batch_size=phase.batch)
        if sampled:
            run = replace(run, teacher_batch_size=(stored or {}).get("teacher_batch_size", run.teacher_batch_size))
        else:
            run, more = _with_teacher(run, phase, len(prompts), available_bytes, stored)
        more = [line, *more] if line else more
    final = planned_phases(run, thought, model, prompts)
    plans = [make_plan(phase) for phase in (_sampled_before(final) if sampled else final)]
    highest = max(plans, key=lambda plan: plan.total_bytes)
    peak = f"{highest.total_bytes / GIB:.2f} GiB at the highest point, {highest.peak.name}"
    line = f"learner: {chosen.text_of(free)}: {reason} ({peak})"
    if began is not None and not keeps:
        line += (
            f"; the run began with {began.text_of(free)}, which does not fit any more, and is not repeated bit by bit"
        )
    if available_bytes is None and not run.force:
        more.append("plan: nothing says here how much memory is free, so nothing says whether this run fits")
    return run, ([line] if free and run.recompute else []) + more


def _sampled_before(phases: Phases) -> Phases:
    """The phases without a teacher that samples: what one text would need stands for it, and less there cannot be."""
    return tuple(replace(phase, rollout_batch=1) if phase.distills else phase for phase in phases)


def _split(
    phase: PlanSetting, free: Collection[str], available_bytes: int | None, stored: Mapping[str, Any] | None
) -> PlanSetting:
    """A phase of distillation with as many texts in its learner at once as fit, or as the run began with."""
    if not phase.distills:
        return phase
    same = _as_split_before(phase, stored)
    if same is not None and same == split_to_fit(same, free, available_bytes):
        return same
    return split_to_fit(phase, free, available_bytes)


def _as_split_before(phase: PlanSetting, stored: Mapping[str, Any] | None) -> PlanSetting | None:
    """The phase in the micro-batches that its run began with; None if they are not known, or are no part of its step.

    Sizes that do not divide the step are kept as well: a given one need not.
    """
    began, count = int((stored or {}).get("distill_micro_batch_size", 0)), phase.completions
    if not 1 <= began <= count:
        return None
    return replace(phase, batch=began, generation_batch=None if began == count else count)


def _micro_batch_line(phase: PlanSetting, stored: Mapping[str, Any] | None) -> str:
    """What is said of the micro-batches of a step that were left to the planner; "" where the step is taken whole."""
    same = _as_split_before(phase, stored)
    lost = same is not None and same.batch != phase.batch
    if phase.micro_batches == 1 and not lost:
        return ""
    reason = "chosen by the planner" if same is None or lost else "as the run began"
    line = f"distillation: its learner takes {phase.batch} of the {phase.completions} texts of a step at once: {reason}"
    if same is None or not lost:
        return line
    return f"{line}; the run began with {same.batch}, which do not fit any more, and is not repeated bit by bit"


def _with_teacher(
    run: RunConfig, phase: PlanSetting, num_prompts: int, available_bytes: int | None, stored: Mapping[str, Any] | None
) -> tuple[RunConfig, list[str]]:
    """The run with the texts that its teacher samples at once, and lines about them and about its cache."""
    most = min(num_prompts, run.distill_steps * run.distill_batch_size)
    began = (stored or {}).get("teacher_batch_size")
    rows, line = teacher_batch(phase, run.teacher_batch_size, most, available_bytes, began=began)
    lines = [line] if line else []
    if run.teacher_cache is not None:
        lines.append(bounded_teacher_line(run.teacher_cache))
    return replace(run, teacher_batch_size=rows), lines


def _as_it_began(setting: PlanSetting, free: Collection[str], stored: Mapping[str, Any] | None) -> Savings | None:
    """What is given, and for what is free the choice with which a run began; None if it is not known."""
    if not free or stored is None or not set(SAVINGS) <= set(stored):
        return None
    return Savings(**{name: stored[name] if name in free else getattr(setting, name) for name in SAVINGS})


def _fits(savings: Savings, phases: Phases, available_bytes: int | None, host_bytes: int | None) -> bool:
    """Whether every phase fits the device and, if keys and values are to wait there, the host."""
    plans = [make_plan(savings.of(phase)) for phase in phases]
    on_host = max(plan.host_bytes for plan in plans) if savings.kv_log == "host" else 0
    fits_host = host_bytes is None or on_host <= host_bytes
    return fits_host and (available_bytes is None or max(plan.total_bytes for plan in plans) <= available_bytes)


def _refused(
    phases: Phases, free: Collection[str], highest: Plan, available_bytes: int, console: Console
) -> DoesNotFitError:
    """Print the table of the phase that needs most, and the price of what helps; returns the error that names it."""
    print_plans({"this run": highest}, available_bytes, "memory by phase", console)
    runs = runs_that_fit(phases, free, available_bytes)
    asked = {phase.objective: phase for phase in phases}
    steps = []
    for advised in runs:
        told = [
            text
            for phase in advised
            for text in changes(asked[phase.objective], phase, OPTIONS[phase.objective], free=free)
        ]
        told += [f"set {OTHER[advised[0].objective]} 0"] if len(runs) > 1 else []
        steps.append(" and ".join(dict.fromkeys(told)))
        for line in (line for phase in advised for line in price_lines(phase)):
            plain_line(console, line)
    remedy = "; then, in a run of its own, ".join(steps) or NOTHING_HELPS
    remedy += bounded_remedy(phases, free, highest, available_bytes)
    sampling = highest.peak.name.startswith(TEACHER_SAMPLES)
    texts = next((phase.decoded_at_once for phase in phases if phase.distills), None) if sampling else None
    return refusal(highest, available_bytes, f"{remedy}, or pass --force", texts)


def planned_phases(
    run: RunConfig, thought: ThoughtConfig, model: PretrainedConfig, prompts: Sequence[Sequence[int]]
) -> Phases:
    """The setting to plan for each phase of a run.

    Args:
        run: the run, nothing of which is left to the planner.
        thought: the adapter.
        model: configuration of the base.
        prompts: token ids of all prompts; the longest one counts.
    """
    phases, shared = [], _shared(run, thought, model, prompts)
    if run.distill_steps:
        texts = replace(shared, objective="distill", batch=run.distill_batch_size, group=1)
        if run.distill_micro_batch_size != AUTO and run.distill_micro_batch_size < texts.batch:
            texts = replace(texts, batch=run.distill_micro_batch_size, generation_batch=texts.batch)
        asked = None if run.teacher_batch_size == AUTO else run.teacher_batch_size
        phases.append(replace(texts, rollout_batch=asked, teacher_cache=run.teacher_cache))
    if run.grpo_steps:
        size = run.grpo_batch_size // run.gradient_accumulation
        grpo = in_micro_batches(replace(shared, group=run.group_size), run.grpo_batch_size, size)
        phases.append(replace(grpo, beta=run.beta, reuse=run.reuse_rollout))
    return tuple(phases)


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
