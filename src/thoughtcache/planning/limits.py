"""The largest batch, group, length or window that still fits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from thoughtcache.checks import one_of
from thoughtcache.planning.plan import make_plan
from thoughtcache.planning.savings import tightest
from thoughtcache.planning.setting import PlanSetting

FIELDS = ("batch", "group", "max_new_tokens", "window")
HIGHEST_BATCH = 4096
HIGHEST_LENGTH = 2**20


def largest(
    setting: PlanSetting,
    field: str,
    available_bytes: int,
    *,
    reserve_bytes: int | None = None,
    free: Collection[str] = (),
) -> tuple[int, bool]:
    """The largest value of one field that fits, the others unchanged.

    Args:
        setting: the run.
        field: one of `FIELDS`.
        available_bytes: bytes that the device has to offer.
        reserve_bytes: see `make_plan`.
        free: names of savings that may be used to the full; the others unchanged.

    Returns:
        The value, 0 if not even the smallest fits; and whether the search ended at its own bound (4096 rows, the
        positions of the model, 2^20 tokens, or a window as long as the rollout) rather than at the memory.

    Raises:
        ValueError: if `field` is not one of them.
    """
    one_of("field", field, FIELDS)
    bound = {
        "batch": HIGHEST_BATCH,
        "group": HIGHEST_BATCH,
        "max_new_tokens": max_length(setting),
        "window": max_window(setting),
    }[field]

    def fits(value: int) -> bool:
        changed = with_field(setting, field, value)
        return make_plan(tightest(changed, free), reserve_bytes=reserve_bytes).total_bytes <= available_bytes

    found = highest(fits, bound)
    return found, found == bound


def max_length(setting: PlanSetting) -> int:
    """Thought tokens that the positions of the model allow: any number, if they roll and the window fits."""
    positions = setting.max_positions
    if positions is None or replace(setting, max_new_tokens=HIGHEST_LENGTH).positions_needed <= positions:
        return HIGHEST_LENGTH
    return max(1, positions - setting.prompt_tokens)


def max_window(setting: PlanSetting) -> int:
    """The widest window that makes a difference, and that rolling positions leave room for."""
    if setting.max_positions is None or not setting.rolls:
        return setting.max_new_tokens
    return max(1, min(setting.max_new_tokens, setting.max_positions - setting.prompt_tokens))


def with_field(setting: PlanSetting, field: str, value: int) -> PlanSetting:
    """The setting with another value of one field; the window is a field of the adapter."""
    if field == "window":
        return replace(setting, thought=replace(setting.thought, window=value))
    return replace(setting, **{field: value})  # type: ignore[arg-type]


def highest(fits: Callable[[int], bool], bound: int) -> int:
    """The largest value in 1..bound that fits, 0 if none was found.

    Halving from the top comes first: very small windows evict so often that their states outgrow the cache they save.
    """
    low, high = bound, bound + 1
    while low and not fits(low):
        low, high = low // 2, low
    while low and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
