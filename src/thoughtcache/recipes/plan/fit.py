"""Choose what a training run saves, and refuse one that would not fit, before its weights are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from transformers import PretrainedConfig

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import SAVINGS, learner_options, left_to_the_planner, replay_options
from thoughtcache.planning.advice import Phases, in_micro_batches, runs_that_fit
from thoughtcache.planning.fit import ACCUMULATION, NOTHING_HELPS, DoesNotFitError, changes, free_bytes, refusal
from thoughtcache.planning.plan import GIB, Plan, make_plan
from thoughtcache.planning.savings import Savings, choose_savings, usable_bytes
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.report.plan import print_plans
from thoughtcache.report.plan_advice import price_lines
from thoughtcache.report.progress import plain_line

OPTIONS = {
    "grpo": {"batch": "--grpo-batch-size", "group": "--group-size", ACCUMULATION: "--gradient-accumulation"},
    "distill": {"batch": "--distill-batch-size"},
}
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
) -> tuple[RunConfig, str]:
    """The run with the savings that its settings leave to the planner, and a line about them, "" if none was left.

    A refusal prints a table, and what the changes cost that it names.

    Args:
        run: the run; with `force` it is not refused.
        thought: the adapter.
        model: configuration of the base.
        prompts: token ids of all prompts; the longest one counts.
        console: where the table goes.
        available_bytes: what may be used; None asks the device, and leaves a margin.
        stored: the savings with which a run that goes on began; they are taken for what is left to the planner as long
            as they fit, so that it computes what an uninterrupted one would. None for a new run.

    Raises:
        DoesNotFitError: if a phase needs more than is available; the message names the total, what is available, the
            largest part and the settings to change.
    """
    free = left_to_the_planner(run)
    run = replace(run, **{name: getattr(replay_options(run), name) for name in SAVINGS})
    if run.thinking is not None:
        plain_line(console, f"plan: --thinking {run.thinking} is not planned, so nothing says whether this run fits")
        return run, ""
    phases = planned_phases(run, thought, model, prompts)
    device_type = phases[0].device_type
    if available_bytes is None and not (run.force and device_type == "cpu"):
        available_bytes = usable_bytes(free_bytes(device_type))
    host_bytes = usable_bytes(free_bytes("cpu")) if device_type == "cuda" else None
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
        raise _refused(phases, free, highest, available_bytes, console)
    peak = f"{highest.total_bytes / GIB:.2f} GiB at the highest point, {highest.peak.name}"
    line = f"learner: {chosen.text_of(free)}: {reason} ({peak})"
    if began is not None and not keeps:
        line += (
            f"; the run began with {began.text_of(free)}, which does not fit any more, and is not repeated bit by bit"
        )
    return replace(run, **asdict(chosen)), line if free and run.recompute else ""


def _as_it_began(setting: PlanSetting, free: Collection[str], stored: Mapping[str, Any] | None) -> Savings | None:
    """What is given, and for what is free the choice with which a run began; None if it is not known."""
    if not free or stored is None or set(stored) != set(SAVINGS):
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
    error = refusal(highest, available_bytes, "; then, in a run of its own, ".join(steps) or NOTHING_HELPS)
    return DoesNotFitError(f"{error}, or pass --force", error.plan, error.available_bytes)


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
        phases.append(replace(shared, objective="distill", batch=run.distill_batch_size, group=1))
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
