"""Budgets by kv head from scores of heads: what HeadKV's and AdaKV's rules share."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from thoughtcache.cache.budgets.base import rows_on_grid
from thoughtcache.cache.schedule import evict_count

Scores = Sequence[Sequence[float]]
"""A number of at least 0 for every head, one list per layer."""


@dataclass(frozen=True, kw_only=True)
class ScoredBudgets(ABC):
    """Shares out what heads keep by a score of each. Settings are the fields of the class, a frozen dataclass.

    Attributes:
        group: query heads of a kv head, if the scores are those of query heads; their mean is taken.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Who gives heads of higher scores more in this way, for the help of the command line."""

    group: int = 1

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group must be at least 1 query head of a kv head, got {self.group}")

    @abstractmethod
    def wanted(self, scores: Sequence[Sequence[float]], num_kept: int) -> list[list[Fraction]]:
        """Thoughts that every head should keep when others leave, in rows whose totals have to come out exactly.

        Args:
            scores: a score for every kv head, one list per layer, of which at least one is above 0.
            num_kept: W - E, the mean of every row.
        """

    def share_out(self, scores: Any, window: int, num_evicted: int) -> list[list[int]]:
        """The budget of every kv head, in one grid and of mean W.

        Args:
            scores: a number of at least 0 for every head, one list per layer; what a user gives is looked at here.
            window: W.
            num_evicted: E.

        Raises:
            ValueError: for scores that are no numbers of at least 0, and where nothing but even budgets comes out.
        """
        rows = self._of_kv_heads(scores)
        if not any(score for row in rows for score in row):
            raise ValueError("scores of heads are all 0, and nothing can be shared out by them; give others")
        on_grid = rows_on_grid(self.wanted(rows, window - num_evicted), window, num_evicted)
        budgets, heads = [size for row in on_grid for size in row], len(rows[0])
        if len(set(budgets)) == 1:
            raise ValueError(
                f"eviction_budgets={self.name!r} comes to even budgets at window={window} with {num_evicted} thoughts "
                f"that leave at once, because budgets differ by multiples of {num_evicted}; lower evict_fraction or "
                f"{self.evener}, or raise the window"
            )
        return [list(budgets[start : start + heads]) for start in range(0, len(budgets), heads)]

    evener: ClassVar[str]
    """The setting that makes budgets more even."""

    def _of_kv_heads(self, scores: Any) -> list[list[float]]:
        """The scores of kv heads: the mean over the query heads of each."""
        lists = isinstance(scores, Sequence) and all(isinstance(row, Sequence) for row in scores)
        flat = [score for row in scores for score in row] if lists else []
        numbers = all(type(score) in (int, float) and 0 <= score < math.inf for score in flat)
        if not flat or not numbers or len({len(row) for row in scores}) != 1:
            raise ValueError("scores of heads must be lists of equally many numbers of at least 0, one list per layer")
        if len(scores[0]) % self.group:
            raise ValueError(
                f"group={self.group} query heads to a kv head do not divide the {len(scores[0])} scores of a layer; "
                "leave group out if the scores are those of kv heads"
            )
        starts = range(0, len(scores[0]), self.group)
        return [[fmean(row[start : start + self.group]) for start in starts] for row in scores]


def settings_of(rule: type[ScoredBudgets]) -> dict[str, int | float]:
    """The settings of a rule and their defaults, its own first."""
    found: dict[str, Any] = {item.name: item.default for item in fields(rule)}
    return {**{name: value for name, value in found.items() if name != "group"}, "group": found["group"]}


def budgets_of_text(
    text: str, rule: type[ScoredBudgets], window: int | str | None, evict_fraction: float
) -> list[list[int]]:
    """The budgets of `NAME:scores=FILE,setting=number`; FILE is JSON, one list of numbers per layer.

    Raises:
        ValueError: if a setting is not known, the file cannot be read, or the window is no integer.
    """
    given, known = f"eviction_budgets={text!r}", settings_of(rule)
    file, found = None, dict[str, Any]()
    for pair in filter(None, text.partition(":")[2].split(",")):
        key, _, value = pair.partition("=")
        try:
            if key == "scores":
                file = Path(value)
            else:
                found[key] = type(known[key])(value)
        except (KeyError, ValueError) as error:
            told = ", ".join(f"{name}={default:g}" for name, default in known.items())
            raise ValueError(f"{given}: {pair!r} is no setting of {rule.name!r}; it has scores=FILE, {told}") from error
    if not isinstance(window, int):
        raise ValueError(
            f"{given} needs a window that is an integer, got window={window!r}; give one, or a list of budgets"
        )
    if file is None:
        raise ValueError(f"{given} needs scores: {rule.name}:scores=FILE, a JSON file with a list of numbers per layer")
    try:
        scores = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{given}: {file} cannot be read as JSON: {error}") from error
    try:
        return rule(**found).share_out(scores, window, evict_count(window, evict_fraction))
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from error
