"""The one table of allocations, and how what a user gives becomes the budget of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from thoughtcache.cache.budgets.base import BudgetAllocation
from thoughtcache.cache.budgets.pyramid import PyramidBudgets

ALLOCATIONS: dict[str, type[BudgetAllocation]] = {PyramidBudgets.name: PyramidBudgets}
"""The allocations of this package."""

Budgets = str | Sequence[int] | None
"""A name with its settings, `pyramid:beta=8`; the budget of every layer; "even" or None for the window in all."""
EVEN = "even"


def make_allocation(text: str) -> BudgetAllocation:
    """The allocation called `name`, from `name` or `name:key=integer,key=integer`.

    Raises:
        ValueError: if the name, a setting or its value is not known.
    """
    name, _, settings = text.partition(":")
    if name not in ALLOCATIONS:
        raise ValueError(
            f"eviction_budgets={text!r} is not known; choose one of {[EVEN, *sorted(ALLOCATIONS)]}, or give the budget "
            "of every layer as a list of integers"
        )
    allocation: Any = ALLOCATIONS[name]
    defaults = {item.name: item.default for item in fields(allocation)}
    found: dict[str, int] = {}
    for pair in settings.split(",") if settings else ():
        key, _, value = pair.partition("=")
        if key not in defaults or not value.lstrip("-").isdigit():
            known = ", ".join(f"{known}={default}" for known, default in defaults.items())
            raise ValueError(f"eviction_budgets={text!r}: {pair!r} is no setting of {name!r}; it has {known}")
        found[key] = int(value)
    try:
        made: BudgetAllocation = allocation(**found)
    except ValueError as error:
        raise ValueError(f"eviction_budgets={text!r}: {error}") from error
    return made


def checked_budgets(budgets: Budgets) -> str | list[int] | None:
    """What a configuration keeps of its budgets; refuses what no model and no window would make right.

    Raises:
        ValueError: if a name or a setting is not known, or if a list holds anything but positive integers.
    """
    if budgets is None or budgets == EVEN:
        return None
    if isinstance(budgets, str):
        make_allocation(budgets)
        return budgets
    sizes = list(budgets)
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(
            f"eviction_budgets={sizes} must be integers of at least 1 thought, one per layer; or give a name of "
            f"{[EVEN, *sorted(ALLOCATIONS)]}"
        )
    return sizes


def resolve_budgets(budgets: Budgets, window: int, num_evicted: int, num_layers: int | None) -> tuple[int, ...] | None:
    """The budget of every layer of a model; None where all are equal to the window.

    Args:
        budgets: what the user gave.
        window: W, the mean.
        num_evicted: E.
        num_layers: L; None where no model is known yet, which is enough for a list.

    Raises:
        ValueError: if the budgets are not those of the model's layers, not in one grid or not of mean W.
    """
    if budgets is None:
        return None
    if isinstance(budgets, str):
        if num_layers is None:
            raise ValueError(
                f"eviction_budgets={budgets!r} is shared out over the layers of a model, and no model is known here; "
                "put the adapter on one first (peft.get_peft_model)"
            )
        return make_allocation(budgets).share_out(num_layers, window, num_evicted)
    sizes = tuple(budgets)
    given = f"eviction_budgets={list(sizes)}"
    if num_layers is not None and len(sizes) != num_layers:
        raise ValueError(f"{given} are {len(sizes)} budgets, and the model has {num_layers} layers; give one per layer")
    if min(sizes) < num_evicted:
        raise ValueError(
            f"{given}: {num_evicted} thoughts leave at once, so that no layer can hold fewer; raise the smallest "
            "budget, or lower evict_fraction"
        )
    if any((size - min(sizes)) % num_evicted for size in sizes):
        raise ValueError(
            f"{given} must differ by multiples of the {num_evicted} thoughts that leave at once, so that all layers "
            "evict at the same times; change them, or evict_fraction"
        )
    if sum(sizes) != len(sizes) * window:
        raise ValueError(
            f"{given} have the mean {sum(sizes) / len(sizes):g}, and window={window} is the mean that a cache is "
            f"measured by; change one of them, or use eviction_budgets={EVEN!r}"
        )
    return None if len(set(sizes)) == 1 else sizes
