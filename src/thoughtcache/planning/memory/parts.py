"""Bytes that are alive at one moment, by part."""

from __future__ import annotations

from collections.abc import Iterable

Parts = dict[str, int]


def total(parts: Parts) -> int:
    """Bytes of all parts."""
    return sum(parts.values())


def highest(moments: Iterable[Parts]) -> Parts:
    """The moment that needs most."""
    return max(moments, key=total)


def mean(of_groups: Iterable[tuple[int, Parts]]) -> Parts:
    """The same moment as layers of different budgets see it, each counted for all layers; weighted by their numbers."""
    weighted = list(of_groups)
    layers = sum(count for count, _ in weighted)
    return {name: sum(count * parts[name] for count, parts in weighted) // layers for name in weighted[0][1]}


def add(*parts: Parts) -> Parts:
    """Sum by part, without empty ones."""
    names = dict.fromkeys(name for part in parts for name in part)
    totals = {name: sum(part.get(name, 0) for part in parts) for name in names}
    return {name: value for name, value in totals.items() if value}
