"""PyramidKV (Cai et al., arXiv 2406.02069): lower layers keep more, by a straight line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from thoughtcache.cache.budgets.base import BudgetAllocation


@dataclass(frozen=True)
class PyramidBudgets(BudgetAllocation):
    """Kept thoughts fall from layer to layer by the same number.

    The published code (KVCache-Factory, `pyramidkv/pyramidkv_utils.py`) selects on the prompt: of a budget B the newest
    w tokens always stay, and of the others layer i keeps `max - i step`, with `min = (B - w) // beta`,
    `max = 2 (B - w) - min` and `step = (max - min) // (L - 1)`, beta 20. Here B is the window and w is E, the thoughts
    that come between two evictions, which every layer has room for. What the line shares out is what stays, W - E.

    Deviations: the line is exact and rounded afterwards, to a grid of E and to the exact total (`on_grid`), where the
    code floors its step, so that its total is a little larger; `min` is at least 1; a length below which the
    code is uniform does not exist, because a layer that is not full evicts nothing. Which thoughts stay is the eviction
    policy's, SnapKV's in the code.

    Attributes:
        beta: how much smaller than the mean the last layer is, above 1.
    """

    name: ClassVar[str] = "pyramid"
    summary: ClassVar[str] = "lower layers keep more (PyramidKV)"

    beta: int = 20

    def __post_init__(self) -> None:
        if self.beta < 2:
            raise ValueError(f"beta must be at least 2, got {self.beta}; at 1 budgets are even")

    def wanted(self, num_layers: int, num_kept: int) -> Sequence[Fraction]:
        """The line from `2 (W - E) - min` in the first layer to `min` in the last."""
        lowest = max(1, num_kept // self.beta)
        highest = 2 * num_kept - lowest
        if num_layers == 1:
            return [Fraction(num_kept)]
        step = Fraction(highest - lowest, num_layers - 1)
        return [highest - layer * step for layer in range(num_layers)]
