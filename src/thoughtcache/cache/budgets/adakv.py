"""AdaKV (Feng et al., arXiv 2407.11550): heads of one layer share its cache by the attention weights that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from thoughtcache.cache.budgets.scored import ScoredBudgets, Scores
from thoughtcache.cache.schedule import evict_count


@dataclass(frozen=True, kw_only=True)
class AdaKVBudgets(ScoredBudgets):
    """Every layer holds W thoughts on average over its heads; a share of it follows their scores.

    The published rule (FFY00/AdaKV; NVIDIA/kvpress, `adakv_press.py`) acts when something leaves: weights of all heads
    of a layer are pooled, the largest stay, and `alpha` of its even share is safe for every head before. Head h of H
    keeps `alpha B + (1 - alpha) B*_h`, where `B*_h` of the B H largest weights are its own.

    Deviations: times at which heads evict are functions of lengths here, so that budgets are fixed before anything is
    sampled: `B*_h` is a mean over texts that the user gives, measured once (`tc.probe_pooled_attention`), and B is
    what stays, W - E. They are rounded to a grid of E and to the exact total of every layer (`rows_on_grid`). Which
    thoughts of a head stay is the eviction policy's.

    Attributes:
        alpha: the share of what stays that is alike for all heads, from 0 to below 1; 0.2 is the published one.
    """

    name: ClassVar[str] = "adakv"
    source: ClassVar[str] = "within each layer, as in AdaKV"
    evener: ClassVar[str] = "alpha"

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be from 0 to below 1, got {self.alpha:g}; 0.2 is the published share")
        super().__post_init__()

    def wanted(self, scores: Sequence[Sequence[float]], num_kept: int) -> list[list[Fraction]]:
        """`alpha B + (1 - alpha) B H score_h / sum`, in a row per layer; alike where a layer's scores are all 0."""
        alpha = Fraction(self.alpha)
        return [
            [num_kept * (alpha + (1 - alpha) * share) for share in _shares([Fraction(score) for score in row])]
            for row in scores
        ]


def _shares(scores: Sequence[Fraction]) -> list[Fraction]:
    """Scores of mean 1."""
    total = sum(scores)
    return [len(scores) * score / total if total else Fraction(1) for score in scores]


def adakv_budgets(scores: Scores, *, window: int, evict_fraction: float = 0.25, alpha: float = 0.2) -> list[list[int]]:
    """Budgets by kv head for `ThoughtConfig(eviction_budgets=...)`, by scores within layers; see `AdaKVBudgets`.

    Args:
        scores: a number of at least 0 for every kv head, one list per layer, as of `probe_pooled_attention`.
        window: W, the mean of the budgets of every layer.
        evict_fraction: share of it that leaves when it is full, as in the configuration.
        alpha: the share of what stays that is alike for all heads, from 0 to below 1.

    Raises:
        ValueError: if a value is out of range, or where nothing but even budgets comes out.
    """
    return AdaKVBudgets(alpha=alpha).share_out(scores, window, evict_count(window, evict_fraction))
