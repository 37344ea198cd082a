"""HeadKV (Fu et al., arXiv 2410.19258): kv heads of higher scores keep more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from thoughtcache.cache.budgets.scored import ScoredBudgets, Scores
from thoughtcache.cache.schedule import evict_count


@dataclass(frozen=True, kw_only=True)
class HeadKVBudgets(ScoredBudgets):
    """Part of what heads keep is shared out by their scores, over all layers.

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
    """

    name: ClassVar[str] = "headkv"
    source: ClassVar[str] = "over all layers, as in HeadKV"
    evener: ClassVar[str] = "beta"

    beta: float = 2.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.beta < math.inf:
            raise ValueError(f"beta must be at least 1, got {self.beta:g}; at 1 all that stays is shared out by score")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature:g}; 1 takes scores as they are")
        super().__post_init__()

    def wanted(self, scores: Sequence[Sequence[float]], num_kept: int) -> list[list[Fraction]]:
        """`share_h pool + min`, in one row of all heads."""
        flat = [score for row in scores for score in row]
        return [wanted_by_score(flat, num_kept, beta=self.beta, temperature=self.temperature)]


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
