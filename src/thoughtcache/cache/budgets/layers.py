"""Which layer evicts at which event: integers only, as `cache/schedule.py`.

E thoughts leave at once. Budgets are `b = b_min + m E` with integers `m >= 0`, so that all layers share one grid of
events: event `j` comes before thought `b_min + j E`. A layer of budget `b` is full for the first time at event `m`, and
from then on at every one. At the events before, it evicts and absorbs nothing. With even budgets every `m` is 0.

Budgets that differ by kv head are in the same grid. A layer then evicts as soon as one of its heads is full, and has
as many columns as its largest head (`heads.py`).

Proof: tests/unit/test_budgets.py, tests/unit/test_head_budgets.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from thoughtcache.cache.budgets.heads import HeadColumns
from thoughtcache.records import CacheSettings


@dataclass(frozen=True, kw_only=True)
class LayerBudgets:
    """The thoughts that every layer, or every kv head, may hold.

    What follows from them is worked out once: every layer asks at every event.

    Attributes:
        window: W, their mean.
        num_evicted: E, thoughts that leave a layer at once.
        sizes: the budget of every layer, that of its largest head; None where all are W.
        heads: the budget of every kv head of every layer; None where the heads of each layer are alike.
    """

    window: int
    num_evicted: int
    sizes: tuple[int, ...] | None = None
    heads: tuple[tuple[int, ...], ...] | None = None

    @cached_property
    def firsts(self) -> tuple[int, ...] | None:
        """Thoughts before which every layer evicts for the first time: its budget, that of its smallest head."""
        return self.sizes if self.heads is None else tuple(map(min, self.heads))

    @cached_property
    def columns(self) -> tuple[HeadColumns, ...] | None:
        """What the heads of every layer make of its columns; None where the heads of each layer are alike."""
        if self.heads is None:
            return None
        return tuple(
            HeadColumns(sizes=sizes, smallest=self.smallest, num_evicted=self.num_evicted) for sizes in self.heads
        )

    def of_heads(self, layer_index: int) -> HeadColumns | None:
        """The same for one layer."""
        return None if self.columns is None else self.columns[layer_index]

    def blank(self, events: int) -> tuple[tuple[int, ...], ...] | None:
        """Blank columns of every kv head after so many events; None where the heads of each layer are alike."""
        return None if self.columns is None else tuple(columns.blank(events) for columns in self.columns)

    @cached_property
    def distinct(self) -> tuple[int, ...]:
        """The different budgets, ascending: layers of one budget are a *group*."""
        return (self.window,) if self.sizes is None else tuple(sorted(set(self.sizes)))

    @cached_property
    def smallest(self) -> int:
        """Thoughts before which the first event comes."""
        return self.window if self.firsts is None else min(self.firsts)

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
        return tuple((size - self.smallest) // self.num_evicted for size in self.firsts or ())

    @cached_property
    def opening_places(self) -> tuple[tuple[int, ...], ...]:
        """How many layers below each one evict, at every event at which some do not."""
        return tuple(
            tuple(accumulate((event >= late for late in self.late), initial=0)) for event in range(self.num_opening)
        )

    def size(self, layer_index: int) -> int:
        """The budget of a layer."""
        return self.window if self.sizes is None else self.sizes[layer_index]

    def first(self, layer_index: int) -> int:
        """Thoughts before which a layer evicts for the first time."""
        return self.window if self.firsts is None else self.firsts[layer_index]

    def columns_before(self, size: int, event: int) -> int:
        """Thoughts that layers of a budget have columns for, in front of an event at which they evict."""
        return size if self.heads is None else min(size, self.smallest + event * self.num_evicted)

    def group(self, layer_index: int) -> int:
        """The place of a layer's budget among the different ones."""
        return self.distinct.index(self.size(layer_index))

    def num_late(self, layer_index: int) -> int:
        """m, events before the first one at which a layer evicts."""
        return 0 if self.sizes is None else self.late[layer_index]

    def is_due(self, layer_index: int, event: int) -> bool:
        """Whether a layer evicts at an event."""
        return event >= self.num_late(layer_index)

    def sheds(self, layer_index: int, event: int) -> bool:
        """Whether a layer has E columns fewer after an event: it evicts from all its heads."""
        columns = self.of_heads(layer_index)
        return self.is_due(layer_index, event) if columns is None else columns.sheds(event)

    def due(self, event: int, num_due: int) -> dict[int, list[int]]:
        """The layers that evict at an event, as places among them, by their budget, where heads of a layer are alike.

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
    return LayerBudgets(
        window=cache.window, num_evicted=cache.num_evicted, sizes=cache.budgets, heads=cache.head_budgets
    )
