"""HeadKV (Fu et al., arXiv 2410.19258): kv heads of higher scores keep more."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

from thoughtcache.cache.budgets.base import on_grid
from thoughtcache.cache.schedule import evict_count

NAME = "headkv"
Scores = Sequence[Sequence[float]]
"""A number of at least 0 for every head, one list per layer."""


@dataclass(frozen=True, kw_only=True)
class HeadKVBudgets:
    """Part of what heads keep is shared out by their scores.

    The published code (FYYFU/HeadKV, `headkv/snapkv_utils.py`) selects on the prompt: of a budget B the newest w tokens
    always stay, and head h keeps `round(share_h pool + min)` others, with `base = B - w`, `min = base - base // beta`,
    `pool = (base // beta) L H` and `share_h = score_h^temperature / sum`. Its scores say how much a head retrieves and
    reasons, measured on examples made for it; they are read from a JSON file. Here B is the window and w is E, the
    thoughts that come between two evictions, so that `base` is what stays, W - E.

    Deviations: shares are exact and rounded afterwards, to a grid of E and to the exact total (`on_grid`); the code
    has budgets of query heads, here they are of kv heads, whose keys are shared (`group` takes the mean over query
    heads, as the port in KVCache-Factory does); the default of beta is ours, the code runs from 1.005 to 10. Which
    thoughts stay is the eviction policy's, SnapKV's in the code.

    Attributes:
        beta: `base // beta` of what a head keeps goes into the pool, at least 1; at 1 everything does.
        temperature: power of the scores, positive; above 1 high scores count more.
        group: query heads of a kv head, if the scores are those of query heads.
    """

    beta: float = 2.0
    temperature: float = 1.0
    group: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.beta < math.inf:
            raise ValueError(f"beta must be at least 1, got {self.beta:g}; at 1 all that stays is shared out by score")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature:g}; 1 takes scores as they are")
        if self.group < 1:
            raise ValueError(f"group must be at least 1 query head of a kv head, got {self.group}")

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
        flat = [score for row in rows for score in row]
        if not any(flat):
            raise ValueError("scores of heads are all 0, and nothing can be shared out by them; give others")
        kept = window - num_evicted
        wanted = wanted_by_score(flat, kept, beta=self.beta, temperature=self.temperature)
        budgets, heads = on_grid(wanted, window, num_evicted), len(rows[0])
        if len(set(budgets)) == 1:
            raise ValueError(
                f"eviction_budgets={NAME!r} comes to even budgets at window={window} with {num_evicted} thoughts that "
                f"leave at once, because budgets differ by multiples of {num_evicted}; lower evict_fraction or beta, "
                "or raise the window"
            )
        return [list(budgets[start : start + heads]) for start in range(0, len(budgets), heads)]

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


def wanted_by_score(scores: Sequence[float], num_kept: int, *, beta: float, temperature: float) -> list[Fraction]:
    """Thoughts that every head should keep, of mean `num_kept`: `share_h pool + min`.

    Args:
        scores: one score per head, of which at least one is above 0.
        num_kept: W - E.
        beta: as in `HeadKVBudgets`.
        temperature: as in `HeadKVBudgets`.
    """
    weights = [Fraction((score / max(scores)) ** temperature) for score in scores]
    in_pool = int(num_kept // beta)
    pool, total = in_pool * len(scores), sum(weights)
    return [num_kept - in_pool + pool * weight / total for weight in weights]


def headkv_budgets(
    scores: Scores, *, window: int, evict_fraction: float = 0.25, beta: float = 2.0, temperature: float = 1.0
) -> list[list[int]]:
    """Budgets by kv head for `ThoughtConfig(eviction_budgets=...)`, by scores of heads; see `HeadKVBudgets`.

    Args:
        scores: a number of at least 0 for every kv head, one list per layer.
        window: W, the mean of the budgets.
        evict_fraction: share of it that leaves when it is full, as in the configuration.
        beta: the smaller, the more is shared out by score, at least 1.
        temperature: power of the scores, positive.

    Returns:
        Thoughts that every kv head holds, one list per layer.

    Raises:
        ValueError: if a value is out of range, or where nothing but even budgets comes out.
    """
    rule = HeadKVBudgets(beta=beta, temperature=temperature)
    return rule.share_out(scores, window, evict_count(window, evict_fraction))


def budgets_of_text(text: str, window: int | str | None, evict_fraction: float) -> list[list[int]]:
    """The budgets of `headkv:scores=FILE,beta=2,temperature=1,group=1`; FILE is JSON, one list of numbers per layer.

    Raises:
        ValueError: if a setting is not known, the file cannot be read, or the window is no integer.
    """
    given, kinds = f"eviction_budgets={text!r}", {"beta": float, "temperature": float, "group": int}
    file, found = None, dict[str, Any]()
    for pair in filter(None, text.partition(":")[2].split(",")):
        key, _, value = pair.partition("=")
        try:
            if key == "scores":
                file = Path(value)
            else:
                found[key] = kinds[key](value)
        except (KeyError, ValueError) as error:
            known = ", ".join(f"{item.name}={item.default:g}" for item in fields(HeadKVBudgets))
            raise ValueError(f"{given}: {pair!r} is no setting of {NAME!r}; it has scores=FILE, {known}") from error
    if not isinstance(window, int):
        raise ValueError(
            f"{given} needs a window that is an integer, got window={window!r}; give one, or a list of budgets"
        )
    if file is None:
        raise ValueError(f"{given} needs scores: {NAME}:scores=FILE, a JSON file with a list of numbers per layer")
    try:
        scores = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{given}: {file} cannot be read as JSON: {error}") from error
    try:
        return HeadKVBudgets(**found).share_out(scores, window, evict_count(window, evict_fraction))
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from error
