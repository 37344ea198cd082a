"""How many texts of distillation go through the device at once: those that the teacher samples, and the learner's.

The teacher samples with its full cache, the one phase of a run whose memory grows with the answer, for every text that
it decodes at once. It decodes as many as keep to `COMFORTABLE` of the device. Where weights leave little room below
that, it decodes as many as fit, `ENOUGH` at most, and one where not even one does. What a text says depends on its own
number and the seed, not on its neighbours (`sampler/draw/inverse_cdf.py`).

The learner takes the texts of a step at once where they fit, else in the largest equal micro-batches that do. Losses
are weighed by tokens, so that the step stays the same up to rounding (`train/distill.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

from thoughtcache.learner.options import AUTO, Auto
from thoughtcache.planning.limits import highest
from thoughtcache.planning.plan import TEACHER_SAMPLES, Phase, make_plan
from thoughtcache.planning.savings import COMFORTABLE, tightest
from thoughtcache.planning.setting import PlanSetting

MOST_AT_ONCE = {"cuda": 256, "cpu": 32}
"""Texts from which on a step of decoding is bound by arithmetic, so that more at once save no time: assumed."""
UNPLANNED = MOST_AT_ONCE["cpu"]
"""Texts at once where nothing was planned, because all of them are on disk, on any device."""
ENOUGH = {"cuda": 32, "cpu": 8}
"""Texts up to which a teacher goes beyond `COMFORTABLE`: a step reads all weights, for one as for many. Assumed."""


def texts_at_once(chosen: int | Auto) -> int:
    """What was chosen or given, or `UNPLANNED`."""
    return UNPLANNED if chosen == AUTO else chosen


def teacher_samples(setting: PlanSetting, *, reserve_bytes: int | None = None) -> Phase:
    """The phase of the teacher's sampling that needs most.

    Args:
        setting: a setting of distillation.
        reserve_bytes: see `make_plan`.
    """
    phases = make_plan(setting, reserve_bytes=reserve_bytes).phases
    sampling = [phase for phase in phases if phase.name.startswith(TEACHER_SAMPLES)]
    return max(sampling, key=lambda phase: phase.total_bytes)


def choose_teacher_batch(
    setting: PlanSetting, most: int, *, available_bytes: int | None, reserve_bytes: int | None = None
) -> int:
    """Texts that the teacher samples at once; 1 where not even one fits.

    As many as keep to `COMFORTABLE` of what there is; where these are fewer than `ENOUGH`, as many up to it as fit.

    Args:
        setting: a setting of distillation; its own number does not count.
        most: texts that there are to sample.
        available_bytes: what the device may be filled with; None if it is not known.
        reserve_bytes: see `make_plan`.
    """
    most = max(1, min(most, MOST_AT_ONCE[setting.device_type]))
    if available_bytes is None:
        return most

    def keeps_to(bound: float, rows: int) -> bool:
        return teacher_samples(replace(setting, rollout_batch=rows), reserve_bytes=reserve_bytes).total_bytes <= bound

    enough = min(most, ENOUGH[setting.device_type])
    comfortable = highest(partial(keeps_to, COMFORTABLE * available_bytes), most)
    return max(1, comfortable if comfortable >= enough else highest(partial(keeps_to, float(available_bytes)), enough))


def with_teacher_batch(setting: PlanSetting, *, available_bytes: int, reserve_bytes: int | None = None) -> PlanSetting:
    """The setting with the texts that its teacher samples at once, chosen of any number where none is given."""
    if not setting.distills or setting.rollout_batch is not None:
        return setting
    most = MOST_AT_ONCE[setting.device_type]
    rows = choose_teacher_batch(setting, most, available_bytes=available_bytes, reserve_bytes=reserve_bytes)
    return replace(setting, rollout_batch=rows)


def in_micro_batches(setting: PlanSetting, completions: int, most: int) -> PlanSetting:
    """The setting with so many completions in a step, in the largest equal micro-batches of at most `most` of them."""
    size = max(size for size in range(1, min(most, completions) + 1) if completions % size == 0)
    return replace(setting, batch=size, generation_batch=None if size == completions else completions)


def split_to_fit(
    setting: PlanSetting, free: Collection[str], available_bytes: int | None, *, reserve_bytes: int | None = None
) -> PlanSetting:
    """The setting as it is if it fits with every free saving, else in the largest micro-batches of its step that do.

    Args:
        setting: one phase of a run.
        free: names of the savings that may change.
        available_bytes: what the device may be filled with; None if it is not known, in which case nothing is split.
            The teacher's sampling is not held to it: no split makes that smaller.
        reserve_bytes: see `make_plan`.

    Returns:
        The setting, in single rows if nothing fits.
    """
    if available_bytes is None:
        return setting

    def fits(one: PlanSetting) -> bool:
        phases = make_plan(tightest(one, free), reserve_bytes=reserve_bytes).phases
        return all(p.total_bytes <= available_bytes for p in phases if not p.name.startswith(TEACHER_SAMPLES))

    if fits(setting):
        return setting
    count = setting.completions
    split = (in_micro_batches(setting, count, size) for size in range(setting.batch, 0, -1) if count % size == 0)
    return next((one for one in split if fits(one)), in_micro_batches(setting, count, 1))
