"""Figures with their targets: a ratio of interleaved runs, its spread, and whether it passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Curve = tuple[list[float], list[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One number that a measurement reports.

    Attributes:
        name: what it is.
        value: the median where it was repeated; NaN if it could not be measured.
        low: smallest of the repetitions.
        high: largest of them.
        by_cpu: the same by the CPU time of the process, which does not see what else the machine does; None for what is
            no time.
        at_least: target, or None.
        at_most: target, or None.
        unit: of the value; "x" for ratios.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    by_cpu: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def target(self) -> str:
        """As it is printed."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    def verdict(self, *, judged: bool = True) -> str:
        """PASS or FAIL; "quick" where the sizes are not those of the target; nothing without a target."""
        if not self.target:
            return ""
        if math.isnan(self.value):
            return "FAIL"
        if not judged:
            return "quick"
        reached = self.value >= self.at_least if self.at_least is not None else self.value <= (self.at_most or 0.0)
        return "PASS" if reached else "FAIL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a child process reports.

    Attributes:
        figures: for the table.
        curves: label -> (x, y), for the picture.
        values: everything else worth keeping.
    """

    figures: list[Figure] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def over_repeats(name: str, values: Sequence[float], *, cpu: Sequence[float] = (), **target: Any) -> Figure:
    """The median of repetitions, with the smallest and the largest; `cpu` are the same by CPU time.

    Raises:
        ValueError: without values.
    """
    if not values:
        raise ValueError(f"{name!r} has no repetitions")
    spread = {"low": min(values), "high": max(values)} if len(values) > 1 else {}
    return Figure(name=name, value=median(values), by_cpu=median(cpu) if cpu else None, **spread, **target)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """One ratio per repetition: what ran side by side is divided by each other, so that a slow minute cancels."""
    return [top / bottom for top, bottom in zip(numerators, denominators, strict=True)]
