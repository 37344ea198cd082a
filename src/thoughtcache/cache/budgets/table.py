"""The one table of allocations, and how what a user gives becomes the budget of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

from thoughtcache.cache.budgets.adakv import AdaKVBudgets
from thoughtcache.cache.budgets.base import BudgetAllocation
from thoughtcache.cache.budgets.headkv import HeadKVBudgets
from thoughtcache.cache.budgets.pyramid import PyramidBudgets
from thoughtcache.cache.budgets.scored import ScoredBudgets, budgets_of_text
from thoughtcache.cache.schedule import evict_count

ALLOCATIONS: dict[str, type[BudgetAllocation]] = {PyramidBudgets.name: PyramidBudgets}
"""The allocations over layers of this package."""

SCORED: dict[str, type[ScoredBudgets]] = {rule.name: rule for rule in (HeadKVBudgets, AdaKVBudgets)}
"""Those over kv heads, by scores that a file has."""

Budgets = str | Sequence[int] | Sequence[Sequence[int]] | None
"""A name with its settings, `pyramid:beta=8` or `headkv:scores=FILE`; the budget of every layer, or of every kv head, a
list per layer; "even" or None for the window in all."""
LayerSizes = tuple[int, ...] | None
"""The budget of every layer, that of its largest head; None where all are the window."""
HeadSizes = tuple[tuple[int, ...], ...] | None
"""The budget of every kv head of every layer; None where the heads of each layer are alike."""
EVEN = "even"


def make_allocation(text: str) -> BudgetAllocation:
    """The allocation called `name`, from `name` or `name:key=integer,key=integer`.

    Raises:
        ValueError: if the name, a setting or its value is not known.
    """
    name, _, settings = text.partition(":")
    if name not in ALLOCATIONS:
        names = [EVEN, *SCORED, *sorted(ALLOCATIONS)]
        raise ValueError(
            f"eviction_budgets={text!r} is not known; choose one of {names}, or give the budget of every layer as a "
            "list of integers, or of every kv head as a list per layer"
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


def checked_budgets(
    budgets: Budgets, window: int | str | None, evict_fraction: float
) -> str | list[int] | list[list[int]] | None:
    """What a configuration keeps of its budgets; refuses what no model would make right.

    Args:
        budgets: what the user gave.
        window: W, the mean; a text where it is known with the prompts, None where nothing leaves.
        evict_fraction: share of it that leaves when it is full.

    Raises:
        ValueError: if nothing leaves, if a name or a setting is not known, if a list holds anything but positive
            integers, or lists of them that are equally long, or if `resolve_budgets` refuses it.
    """
    if budgets is None or budgets == EVEN:
        return None
    kept = _of_known_form(budgets, window, evict_fraction)
    if window is None:
        raise ValueError(
            f"eviction_budgets={kept!r} changes nothing with window=None, where nothing leaves; set a window, or leave "
            "it out"
        )
    if isinstance(window, int) and not isinstance(kept, str):
        resolve_budgets(kept, window, evict_count(window, evict_fraction), None)
    return kept


def _of_known_form(
    budgets: Budgets, window: int | str | None, evict_fraction: float
) -> str | list[int] | list[list[int]]:
    """A known name, or lists of integers; those of scores that a file has."""
    if isinstance(budgets, str):
        rule = SCORED.get(budgets.partition(":")[0])
        if rule is not None:
            return budgets if window is None else budgets_of_text(budgets, rule, window, evict_fraction)
        make_allocation(budgets)
        return budgets
    assert budgets is not None
    sizes = [list(size) if isinstance(size, Sequence) else size for size in budgets]
    of_heads = [size for size in sizes if isinstance(size, list)]
    flat: list[Any] = [size for row in of_heads for size in row] if of_heads else list(sizes)
    alike = not of_heads or (len(of_heads) == len(sizes) and len({len(row) for row in of_heads}) == 1)
    if not flat or not alike or any(type(size) is not int or size < 1 for size in flat):
        raise ValueError(
            f"eviction_budgets={sizes} must be integers of at least 1 thought, one per layer, or one list per layer "
            f"with one integer per kv head; or give a name of {[EVEN, *SCORED, *sorted(ALLOCATIONS)]}"
        )
    return cast("list[int] | list[list[int]]", sizes)


def written_budgets(budgets: Sequence[int] | Sequence[Sequence[int]], between: str = ",") -> str:
    """Budgets as the command line takes them: layers between commas, or between slashes with their heads inside."""
    rows = [size if isinstance(size, int) else between.join(map(str, size)) for size in budgets]
    return (between if isinstance(budgets[0], int) else "/").join(map(str, rows))


def resolve_budgets(
    budgets: Budgets, window: int, num_evicted: int, num_layers: int | None, num_heads: int | None = None
) -> tuple[LayerSizes, HeadSizes]:
    """The budgets of a model, by layer and by kv head; None where all are equal to the window.

    Args:
        budgets: what the user gave.
        window: W, the mean.
        num_evicted: E.
        num_layers: L; None where no model is known yet, which is enough for a list.
        num_heads: kv heads of a layer; None where they are not known, in which case they are not compared.

    Raises:
        ValueError: if the budgets are not those of the model's layers or heads, not in one grid or not of mean W.
    """
    if budgets is None:
        return None, None
    if isinstance(budgets, str):
        if num_layers is None:
            raise ValueError(
                f"eviction_budgets={budgets!r} is shared out over the layers of a model, and no model is known here; "
                "put the adapter on one first (peft.get_peft_model)"
            )
        return make_allocation(budgets).share_out(num_layers, window, num_evicted), None
    by_head = not isinstance(budgets[0], int)
    rows: list[Sequence[int]] = [[size] if isinstance(size, int) else size for size in budgets]
    given = f"eviction_budgets={[list(row) for row in rows] if by_head else [row[0] for row in rows]}"
    if num_layers is not None and len(rows) != num_layers:
        raise ValueError(f"{given} are {len(rows)} budgets, and the model has {num_layers} layers; give one per layer")
    if by_head and num_heads not in (None, len(rows[0])):
        raise ValueError(
            f"{given} are budgets of {len(rows[0])} kv heads, and a layer of the model has {num_heads}; give one "
            "number per kv head (num_key_value_heads), not per query head"
        )
    _check_sizes(given, "head" if by_head else "layer", [size for row in rows for size in row], window, num_evicted)
    sizes = tuple(max(row) for row in rows)
    if all(min(row) == max(row) for row in rows):
        return (None if len(set(sizes)) == 1 else sizes), None
    return sizes, tuple(tuple(row) for row in rows)


def _check_sizes(given: str, holder: str, sizes: Sequence[int], window: int, num_evicted: int) -> None:
    """Refuse budgets of layers or heads that are not in one grid, or not of mean W."""
    if min(sizes) < num_evicted:
        raise ValueError(
            f"{given}: {num_evicted} thoughts leave at once, so that no {holder} can hold fewer; raise the smallest "
            "budget, or lower evict_fraction"
        )
    if any((size - min(sizes)) % num_evicted for size in sizes):
        raise ValueError(
            f"{given} must differ by multiples of the {num_evicted} thoughts that leave at once, so that all {holder}s "
            "evict at the same times; change them, or evict_fraction"
        )
    if sum(sizes) != len(sizes) * window:
        raise ValueError(
            f"{given} have the mean {sum(sizes) / len(sizes):g}, and window={window} is the mean that a cache is "
            f"measured by; change one of them, or use eviction_budgets={EVEN!r}"
        )
