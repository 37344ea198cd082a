"""The smallest change that makes a run fit: its savings first, then fewer completions at once, then shorter thoughts.

All phases of a run are asked at once: they share their savings and their length. A saving changes no result, fewer
completions change the gradient's noise, and shorter thoughts the task. Smaller micro-batches of the same step come
between: they change nothing but time. A length at which nothing would be evicted is no
advice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

from thoughtcache.cache.schedule import num_evictions
from thoughtcache.learner.options import SAVINGS
from thoughtcache.planning.limits import HIGHEST_BATCH, highest, largest, with_field
from thoughtcache.planning.plan import make_plan
from thoughtcache.planning.savings import choose_savings, combinations, tightest
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.teacher import in_micro_batches, split_to_fit
from thoughtcache.policy.other_cache import ever_evicts

Phases = tuple[PlanSetting, ...]


def phases_of(setting: PlanSetting) -> Phases:
    """The phases of `thoughtcache train` for a planned run: distillation on as many texts, then GRPO.

    GRPO takes whole groups there, and decodes all completions of a step at once. With the full cache there is nothing
    to distil.
    """
    if setting.distills:
        return (setting,)
    rows = max(setting.group, setting.completions - setting.completions % setting.group)
    grpo = in_micro_batches(replace(setting, rollout_batch=None), rows, setting.batch)
    if setting.window is None:
        return (grpo,)
    distill = replace(
        setting, objective="distill", batch=min(setting.batch, rows), group=1, rollout_batch=None,
        generation_batch=None, beta=0.0, reuse=False,
    )  # fmt: skip
    return distill, grpo


def advise(
    phases: Sequence[PlanSetting],
    available_bytes: int,
    *,
    reserve_bytes: int | None = None,
    whole_groups: bool = False,
    splits: bool = False,
) -> Phases | None:
    """The same phases, changed as little as makes them fit; None if nothing does.

    Args:
        phases: the phases of a run.
        available_bytes: what the device may be filled with.
        reserve_bytes: see `make_plan`.
        whole_groups: whether what GRPO samples at once must hold whole groups, and is decoded at once.
        splits: whether a step may be split into micro-batches, those of GRPO also into smaller ones than a group.
    """
    found = _advised(tuple(phases), available_bytes, reserve_bytes, whole_groups, splits)
    if found is None:
        return None
    return tuple(_sampling_as_asked(*pair, available_bytes, reserve_bytes) for pair in zip(phases, found, strict=True))


def most_of_run(phases: Phases, available_bytes: int, *, reserve_bytes: int | None = None) -> dict[str, int]:
    """The longest thoughts of all phases, the largest batch of each, and the largest group; one change at a time.

    Every saving may be used. A group is a micro-batch of its own; batches of GRPO hold whole groups and are not split,
    and those of distillation are what the learner takes at once.

    Args:
        phases: the phases of a run.
        available_bytes: what the device may be filled with.
        reserve_bytes: see `make_plan`.

    Returns:
        Values by the names of `RunConfig`; 0 where nothing fits.
    """

    def most(phase: PlanSetting, field: str) -> int:
        return largest(phase, field, available_bytes, reserve_bytes=reserve_bytes, free=SAVINGS)[0]

    def group_fits(phase: PlanSetting, size: int) -> bool:
        return _fits(tightest(replace(phase, batch=size, group=size), SAVINGS), available_bytes, reserve_bytes)

    found = {"max_new_tokens": min(most(phase, "max_new_tokens") for phase in phases)}
    for phase in phases:
        phase = replace(phase, generation_batch=None)
        rows = most(phase, "batch")
        if phase.distills:
            found["distill_batch_size"] = rows
            continue
        found["grpo_batch_size"] = rows - rows % phase.group
        found["group_size"] = highest(partial(group_fits, phase), HIGHEST_BATCH)
    return found


def runs_that_fit(
    phases: Phases, free: Collection[str], available_bytes: int, *, reserve_bytes: int | None = None
) -> tuple[Phases, ...]:
    """The phases with the savings that are chosen for them, if they fit, and what is advised otherwise.

    Args:
        phases: the phases of a run, in their order.
        free: names of the savings that may be chosen.
        available_bytes: what the device may be filled with.
        reserve_bytes: see `make_plan`.

    Returns:
        The phases of every run, as `advise_runs`.
    """

    def chosen(some: Phases) -> Phases:
        found = choose_savings(some, free, available_bytes=available_bytes, reserve_bytes=reserve_bytes)
        return tuple(found.of(one) for one in some)

    as_asked = chosen(phases)
    if all(_fits(phase, available_bytes, reserve_bytes) for phase in as_asked):
        return (as_asked,)
    advised = advise_runs(phases, available_bytes, reserve_bytes=reserve_bytes, whole_groups=True, splits=True)
    return tuple(chosen(some) for some in advised)


def advise_runs(
    phases: Sequence[PlanSetting],
    available_bytes: int,
    *,
    reserve_bytes: int | None = None,
    whole_groups: bool = False,
    splits: bool = False,
) -> tuple[Phases, ...]:
    """The phases of every run that is to be made: one run of all, or a run each where only that leaves the length.

    A teacher keeps its full cache, so that distillation may need shorter thoughts than what follows it.

    Args:
        phases: the phases of a run, in their order.
        available_bytes: what the device may be filled with.
        reserve_bytes: see `make_plan`.
        whole_groups: see `advise`.
        splits: see there.

    Returns:
        Nothing, if nothing fits.
    """

    def advised(some: Sequence[PlanSetting]) -> Phases | None:
        return advise(some, available_bytes, reserve_bytes=reserve_bytes, whole_groups=whole_groups, splits=splits)

    together = advised(phases)
    if len(phases) == 1 or (together is not None and together[0].max_new_tokens == phases[0].max_new_tokens):
        return () if together is None else (together,)
    apart = [found for found in (advised([phase]) for phase in phases) if found is not None]
    if len(apart) == len(phases):
        return tuple(apart)
    return () if together is None else (together,)


def _advised(
    phases: Phases, available_bytes: int, reserve_bytes: int | None, whole_groups: bool, splits: bool
) -> Phases | None:
    """What `advise` returns, sampling fewer at once in all phases if any of them has to."""
    changed = phases
    for changed in _cheaper(phases, whole_groups):
        fitted = _saving(changed, available_bytes, reserve_bytes)
        if fitted is not None:
            return fitted
    if splits:
        split = _split(changed, available_bytes, reserve_bytes)
        fitted = _saving(split, available_bytes, reserve_bytes)
        if fitted is not None:
            return fitted
        changed = tuple(_whole_unless_it_fits(phase, available_bytes, reserve_bytes) for phase in split)
    for field in ("batch", "group", "max_new_tokens"):
        if splits and field == "max_new_tokens":
            changed = _split(changed, available_bytes, reserve_bytes)
        changed = _lowered(changed, field, available_bytes, reserve_bytes, whole_groups)
        if field == "max_new_tokens" and any(evicts_nothing(phase) for phase in changed):
            return None
        fitted = _saving(changed, available_bytes, reserve_bytes)
        if fitted is not None:
            return fitted
    return None


def _sampling_as_asked(asked: PlanSetting, found: PlanSetting, available: int, reserve: int | None) -> PlanSetting:
    """A phase that fits, sampling as many at once as it was asked to wherever it fits with them."""
    same = replace(found, rollout_batch=asked.rollout_batch)
    return same if _fits(same, available, reserve) else found


def _cheaper(phases: Phases, at_once: bool) -> Iterator[Phases]:
    """The phases as they are, sampling fewer completions at once, and with a learner that recomputes.

    A teacher samples one text at once then, beyond which the planner chooses.

    Args:
        phases: the phases of a run.
        at_once: whether the run decodes all completions of a step at once, whatever they are.
    """
    yield phases
    fewer = tuple(_sampling_fewer(one, at_once) for one in phases)
    if fewer != phases:
        yield fewer
    if not all(one.recompute for one in phases):
        yield tuple(replace(one, recompute=True) for one in fewer)


def _sampling_fewer(phase: PlanSetting, at_once: bool) -> PlanSetting:
    if phase.distills:
        return replace(phase, rollout_batch=None)
    return phase if at_once or phase.decoded_at_once <= phase.batch else replace(phase, rollout_batch=phase.batch)


def _saving(phases: Phases, available: int, reserve: int | None) -> Phases | None:
    """The phases with the cheapest savings that make all of them fit, if any do."""
    packs = [True, False] if phases[0].pack_weights and phases[0].device_type == "cpu" else [phases[0].pack_weights]
    for one in combinations(min(phases, key=lambda phase: phase.batch), SAVINGS):
        for pack in packs:
            saved = tuple(replace(one.of(phase), pack_weights=pack) for phase in phases)
            if all(_fits(phase, available, reserve) for phase in saved):
                return saved
    return None


def _fits(setting: PlanSetting, available: int, reserve: int | None) -> bool:
    return make_plan(setting, reserve_bytes=reserve).total_bytes <= available


def _fits_with(setting: PlanSetting, field: str, available: int, reserve: int | None, value: int) -> bool:
    return _fits(with_field(setting, field, value), available, reserve)


def _lowered(phases: Phases, field: str, available: int, reserve: int | None, whole_groups: bool) -> Phases:
    """Each phase with the largest value of a field that fits with all savings, or with the smallest value there is."""
    found = []
    for phase in phases:
        tight = _tight(phase)
        if _fits(tight, available, reserve) or (field == "group" and phase.distills):
            found.append(phase)
            continue
        in_groups = whole_groups and not phase.distills
        if field == "group" and in_groups:
            found.append(_smaller_groups(phase, tight, available, reserve))
            continue
        value = highest(partial(_fits_with, tight, field, available, reserve), getattr(phase, field))
        if field == "batch" and in_groups:
            value = max(value - value % phase.group, phase.group)
        found.append(with_field(phase, field, max(value, 2 if field == "group" else 1)))
    shortest = min(phase.max_new_tokens for phase in found)
    return tuple(replace(phase, max_new_tokens=shortest) for phase in found)


def _split(phases: Phases, available: int, reserve: int | None) -> Phases:
    """Each phase that does not fit in the largest micro-batches of the same step that do, or in single rows."""
    return tuple(_split_one(phase, available, reserve) for phase in phases)


def _split_one(phase: PlanSetting, available: int, reserve: int | None) -> PlanSetting:
    packed = phase.pack_weights
    split = split_to_fit(replace(phase, pack_weights=False), SAVINGS, available, reserve_bytes=reserve)
    return replace(split, pack_weights=packed)


def _whole_unless_it_fits(phase: PlanSetting, available: int, reserve: int | None) -> PlanSetting:
    """The phase as it is if it fits or distils, else with its whole step as one micro-batch."""
    if phase.distills or _fits(_tight(phase), available, reserve):
        return phase
    return in_micro_batches(phase, phase.completions, phase.completions)


def _tight(phase: PlanSetting) -> PlanSetting:
    """The phase with every saving."""
    return replace(tightest(phase, SAVINGS), pack_weights=False)


def _smaller_groups(phase: PlanSetting, tight: PlanSetting, available: int, reserve: int | None) -> PlanSetting:
    """One group as the micro-batch, with as many completions as fit, two at least."""
    for size in range(phase.group - 1, 2, -1):
        if _fits(replace(tight, batch=size, group=size), available, reserve):
            return replace(phase, batch=size, group=size)
    return replace(phase, batch=2, group=2)


def evicts_nothing(phase: PlanSetting) -> bool:
    """Whether the window of a phase, or the cache of its teacher, holds every thought of it."""
    if phase.teacher_cache is not None and not ever_evicts(phase.teacher_cache, phase.max_new_tokens):
        return True
    events = num_evictions(phase.max_new_tokens - 1, phase.cache.smallest_budget, phase.num_evicted)
    return phase.window is not None and events == 0
