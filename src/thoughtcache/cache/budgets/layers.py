"""Which layer evicts at which event: integers only, as `cache/schedule.py`.

E thoughts leave at once. Budgets are `b = b_min + m E` with integers `m >= 0`, so that all layers share one grid of
events: event `j` comes before thought `b_min + j E`. A layer of budget `b` is full for the first time at event `m`, and
from then on at every one. At the events before, it evicts and absorbs nothing. With even budgets every `m` is 0.

Proof: tests/unit/test_budgets.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from thoughtcache.records import CacheSettings


@dataclass(frozen=True, kw_only=True)
class LayerBudgets:
    """The thoughts that every layer may hold.

    What follows from them is worked out once: every layer asks at every event.

    Attributes:
        window: W, their mean.
        num_evicted: E, thoughts that leave a layer at once.
        sizes: the budget of every layer; None where all are W.
    """

    window: int
    num_evicted: int
    sizes: tuple[int, ...] | None = None

    @cached_property
    def distinct(self) -> tuple[int, ...]:
        """The different budgets, ascending: layers of one budget are a *group*."""
        return (self.window,) if self.sizes is None else tuple(sorted(set(self.sizes)))

    @cached_property
    def smallest(self) -> int:
        """Thoughts before which the first event comes."""
        return self.window if self.sizes is None else min(self.sizes)

    @cached_property
    def largest(self) -> int:
        """Most thoughts that a layer holds."""
        return self.window if self.sizes is None else max(self.sizes)

    @cached_property
    def num_opening(self) -> int:
        """Events at which some layer is not full yet; from this one on all layers evict."""
        return (self.largest - self.smallest) // self.num_evicted

    @cached_property
    def late(self) -> tuple[int, ...]:
        """`num_late` of every layer, m; empty where all budgets are W."""
        return tuple((size - self.smallest) // self.num_evicted for size in self.sizes or ())

    @cached_property
    def opening_places(self) -> tuple[tuple[int, ...], ...]:
        """How many layers below each one evict, at every event at which some do not."""
        return tuple(
            tuple(accumulate((event >= late for late in self.late), initial=0)) for event in range(self.num_opening)
        )

    def size(self, layer_index: int) -> int:
        """The budget of a layer."""
        return self.window if self.sizes is None else self.sizes[layer_index]

    def group(self, layer_index: int) -> int:
        """The place of a layer's budget among the different ones."""
        return self.distinct.index(self.size(layer_index))

    def num_late(self, layer_index: int) -> int:
        """m, events before the first one at which a layer evicts."""
        return 0 if self.sizes is None else self.late[layer_index]

    def is_due(self, layer_index: int, event: int) -> bool:
        """Whether a layer evicts at an event."""
        return event >= self.num_late(layer_index)

    def due(self, event: int, num_due: int) -> dict[int, list[int]]:
        """The layers that evict at an event, as places among them, by their budget.

        Args:
            event: the event.
            num_due: how many they are, which even budgets do not know.
        """
        if self.sizes is None:
            return {self.window: list(range(num_due))}
        sizes = [size for index, size in enumerate(self.sizes) if self.is_due(index, event)]
        return {
            budget: [place for place, size in enumerate(sizes) if size == budget] for budget in dict.fromkeys(sizes)
        }

    def num_evictions(self, layer_index: int, events: int) -> int:
        """Evictions of a layer in the first `events` events."""
        return max(0, events - self.num_late(layer_index))

    def place(self, layer_index: int, event: int) -> int:
        """The place of a layer among those that evict at an event, in whose order slots are recorded."""
        return layer_index if event >= self.num_opening else self.opening_places[event][layer_index]

    def roll(self, event: int) -> int:
        """Positions by which rolling positions fall at an event: E, once the layer with the most thoughts evicts."""
        return self.num_evicted if event >= self.num_opening else 0

    def rolled(self, events: int) -> int:
        """Positions by which rolling positions have fallen after so many events."""
        return max(0, events - self.num_opening) * self.num_evicted


def layer_budgets(cache: CacheSettings, num_layers: int | None = None) -> LayerBudgets | None:
    """The budgets of a cache; None where nothing is evicted.

    Args:
        cache: settings of the cache.
        num_layers: L of the model that runs under it; None does not compare.

    Raises:
        ValueError: if the cache has budgets of another number of layers.
    """
    if cache.budgets is not None and num_layers not in (None, len(cache.budgets)):
        raise ValueError(
            f"the cache has budgets of {len(cache.budgets)} layers, and the model has {num_layers}; sample and replay "
            "with the same model"
        )
    if cache.window is None or cache.num_evicted is None:
        return None
    return LayerBudgets(window=cache.window, num_evicted=cache.num_evicted, sizes=cache.budgets)
