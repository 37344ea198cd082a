"""The interface of an allocation: how a total of thoughts is shared out over layers, once, before sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from math import gcd
from typing import ClassVar


class BudgetAllocation(ABC):
    """Shares out `L W` thoughts over the layers. Settings are the fields of the class, a frozen dataclass."""

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    """What is large, in a few words, for the help of the command line."""

    @abstractmethod
    def wanted(self, num_layers: int, num_kept: int) -> Sequence[Fraction]:
        """Thoughts that every layer should keep when others leave; their mean is `num_kept`.

        Args:
            num_layers: L.
            num_kept: W - E, what stays of a window of W.
        """

    def share_out(self, num_layers: int, window: int, num_evicted: int) -> tuple[int, ...]:
        """The budget of every layer, in one grid and with the exact total `L W`.

        Raises:
            ValueError: if the grid is so coarse that nothing but even budgets is left.
        """
        budgets = on_grid(self.wanted(num_layers, window - num_evicted), window, num_evicted)
        if len(set(budgets)) == 1:
            raise ValueError(
                f"eviction_budgets={self.name!r} comes to even budgets at window={window} with {num_evicted} thoughts "
                f"that leave at once and {num_layers} layers, because budgets differ by multiples of {num_evicted}; "
                "lower evict_fraction, raise the window, or leave eviction_budgets out"
            )
        return budgets


def on_grid(wanted: Sequence[Fraction], window: int, num_evicted: int) -> tuple[int, ...]:
    """Budgets `k_min + m E + E` whose kept parts are near what is wanted, and whose sum is L W.

    1. `k_min`: the total leaves `k_min = W - E - c E / gcd(E, L)`, `c >= 0`. Of these it is the largest that is not
       above the least that is wanted (or 1); if there is none, the smallest of at least 1.
    2. `m`: the integers `m >= 0` of the right sum with the smallest sum of squared distances to
       `(wanted - k_min) / E`. Of equal distances the earlier layer gets more.

    Args:
        wanted: thoughts that every layer should keep; their mean is W - E.
        window: W.
        num_evicted: E.
    """
    return rows_on_grid([wanted], window, num_evicted)[0]


def rows_on_grid(rows: Sequence[Sequence[Fraction]], window: int, num_evicted: int) -> list[tuple[int, ...]]:
    """The same for several rows of equal length, in one grid, each of mean W: `k_min` is that of all rows.

    With more than one row W is in the grid, `k_min = W - E - c E`, so that a row that wants even shares gets them.

    Args:
        rows: what should be kept, one row per total that has to come out exactly; the mean of each is W - E.
        window: W.
        num_evicted: E.
    """
    kept = window - num_evicted
    step = num_evicted // gcd(num_evicted, len(rows[0])) if len(rows) == 1 else num_evicted
    least = max(Fraction(1), min(map(min, rows)))
    candidates = range(kept, 0, -step)
    fitting = [number for number in candidates if number <= least]
    smallest = (fitting[0] if fitting else candidates[-1]) if candidates else kept
    return [_counted_out(row, kept, num_evicted, smallest) for row in rows]


def _counted_out(wanted: Sequence[Fraction], kept: int, num_evicted: int, smallest: int) -> tuple[int, ...]:
    """Step 2 of `on_grid`."""
    num_layers = len(wanted)
    shares = [(value - smallest) / num_evicted for value in wanted]
    counts = [max(0, int(share)) for share in shares]  # no share is below -1
    missing = num_layers * (kept - smallest) // num_evicted - sum(counts)
    for _ in range(abs(missing)):
        if missing > 0:
            place = max(range(num_layers), key=lambda layer: (shares[layer] - counts[layer], -layer))
            counts[place] += 1
        else:
            above = [layer for layer in range(num_layers) if counts[layer]]
            place = min(above, key=lambda layer: (shares[layer] - counts[layer], -layer))
            counts[place] -= 1
    return tuple(smallest + count * num_evicted + num_evicted for count in counts)
