"""The teacher of distillation in a run: how many texts it samples at once, and under which cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PretrainedConfig

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import AUTO, SAVINGS, Auto
from thoughtcache.planning.advice import Phases, evicts_nothing
from thoughtcache.planning.fit import NOTHING_HELPS, DoesNotFitError, refusal, usable_here
from thoughtcache.planning.limits import highest
from thoughtcache.planning.plan import GIB, TEACHER_SAMPLES, Phase, Plan, make_plan
from thoughtcache.planning.savings import choose_savings
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.teacher import choose_teacher_batch, teacher_samples
from thoughtcache.policy.other_cache import cache_text
from thoughtcache.recipes.distill.config import DistillRun


def teacher_batch(
    phase: PlanSetting, asked: int | Auto, most: int, available_bytes: int | None, *, began: int | None = None
) -> tuple[int, str]:
    """How many texts the teacher samples at once, and a line about the choice, "" if there was none.

    Args:
        phase: the phase of distillation.
        asked: what the run asks for.
        most: texts that it samples.
        available_bytes: what the device may be filled with; None if it is not known.
        began: what was chosen when a run that goes on began, which is taken as long as it fits.
    """
    if asked != AUTO:
        return asked, ""
    rows, reason, more = choose_teacher_batch(phase, most, available_bytes=available_bytes), "chosen by the planner", ""
    if began is not None:
        again = teacher_samples(replace(phase, rollout_batch=began)).total_bytes
        if available_bytes is None or again <= available_bytes:
            rows, reason = began, "as the run began"
        else:
            more = f"; the run began with {began}, which does not fit any more"
    needs = teacher_samples(replace(phase, rollout_batch=rows))
    peak = f"{needs.total_bytes / GIB:.2f} GiB at the highest point, {needs.name}"
    return rows, f"teacher: samples {rows} text{'s' if rows > 1 else ''} at once: {reason} ({peak}){more}"


def fitted_teacher(
    run: DistillRun,
    thought: ThoughtConfig,
    model: PretrainedConfig,
    prompts: Sequence[Sequence[int]],
    *,
    available_bytes: int | None = None,
    began: int | None = None,
) -> tuple[DistillRun, list[str]]:
    """A run of `thoughtcache distill` with the number of answers that its base samples at once, and lines about it.

    Args:
        run: the run; with `force` it is not refused.
        thought: the adapter.
        model: configuration of the base.
        prompts: token ids of all questions; the longest one counts.
        available_bytes: what may be used; None asks the device, and leaves a margin. Where nothing says what is free,
            as on macOS, nothing is refused.
        began: see `teacher_batch`.

    Raises:
        DoesNotFitError: if the answers need more than is available, one at a time or as many as the run asks for.
    """
    lengths, on_gpu = {len(prompt) for prompt in prompts}, torch.cuda.is_available()
    phase = PlanSetting(
        model=model,
        thought=thought,
        objective="distill",
        prompt_tokens=max(lengths),
        max_new_tokens=run.max_new_tokens,
        batch=1,
        group=1,
        dtype=run.dtype,
        unequal_prompts=len(lengths) > 1,
        teacher_cache=run.teacher_cache,
        device_type="cuda" if on_gpu else "cpu",
    )
    if available_bytes is None and (on_gpu or not run.force):
        available_bytes = usable_here(phase.device_type)
    rows, line = teacher_batch(phase, run.teacher_batch_size, len(prompts), available_bytes, began=began)
    phase = replace(phase, rollout_batch=rows)
    needs = teacher_samples(phase)
    if available_bytes is not None and needs.total_bytes > available_bytes and not run.force:
        raise _no_room(phase, needs, available_bytes)
    lines = [line] if line else []
    lines += [] if run.teacher_cache is None else [bounded_teacher_line(run.teacher_cache)]
    return replace(run, teacher_batch_size=rows), lines


def _no_room(phase: PlanSetting, needs: Phase, available_bytes: int) -> DoesNotFitError:
    """What is said of answers that do not fit: of which phase, the numbers, and what to do."""
    plan = Plan(phases=(needs,), host_bytes=0)

    def fits(length: int, **changes: Any) -> bool:
        one = replace(phase, rollout_batch=None, max_new_tokens=length, **changes)
        return teacher_samples(one).total_bytes <= available_bytes

    remedies = ["leave out --teacher-batch-size"] if fits(phase.max_new_tokens) else []
    if not remedies:
        length = highest(fits, phase.max_new_tokens)
        shorter = length > 0 and not evicts_nothing(replace(phase, max_new_tokens=length))
        remedies += [f"lower --max-new-tokens to {length}"] if shorter else []
        cache = {"window": phase.window}
        bounded = phase.teacher_cache is None and fits(phase.max_new_tokens, teacher_cache=cache)
        remedies += [f"set --teacher-cache {cache_text(cache)}, whose teacher forgets as well"] if bounded else []
    remedy = ", or ".join([*(remedies or [NOTHING_HELPS]), "pass --force"])
    return refusal(plan, available_bytes, remedy, phase.decoded_at_once)


def bounded_teacher_line(cache: Mapping[str, Any]) -> str:
    """What a cache of the teacher changes."""
    return (
        f"teacher: the texts are sampled under {cache_text(cache)}, as a base that forgets writes them; what is "
        "learned on them are still the distributions of the full cache, and its pass keeps texts whole"
    )


def bounded_remedy(phases: Phases, free: Collection[str], peak: Plan, available_bytes: int) -> str:
    """What a refusal adds where the teacher's sampling is what does not fit: the bounded teacher, if that helps.

    Args:
        phases: the phases that were refused, as few texts at once as there can be.
        free: what is left to the planner.
        peak: plan of the phase that needs most.
        available_bytes: what the device may be filled with.

    Returns:
        Words that follow the remedy; "" if another phase is what does not fit.
    """
    texts = [phase for phase in phases if phase.distills]
    name = peak.peak.name
    if not name.startswith(TEACHER_SAMPLES) or not texts:
        return ""
    (phase,) = texts
    window = phase.thought.window
    if phase.teacher_cache is not None or not isinstance(window, int):
        return ""
    cache = {"window": window}
    bounded = tuple(replace(one, teacher_cache=cache) if one.distills else one for one in phases)
    savings = [name for name in SAVINGS if name in free]
    chosen = choose_savings(bounded, savings, available_bytes=available_bytes)
    if all(make_plan(chosen.of(one)).total_bytes <= available_bytes for one in bounded):
        return f", or set --teacher-cache {cache_text(cache)}, whose teacher forgets as well"
    return ""
