"""How the kv heads of one layer share its columns where each has a budget of its own: integers only.

A layer holds `[prompt | columns of thoughts]`, and all its heads have equally many columns: as many as its head with
the most thoughts. The thoughts of a head stand at the end of them, so that a new one is written to the last column of
every head. A head that holds fewer thoughts has *blank* columns behind the prompt, which attention does not see.

Events are those of `layers.py`. At one of them a head that is full loses E thoughts and its others close up to the end;
where the layer's largest head is full as well, the layer then has E columns fewer, and otherwise E blank ones more in
the heads that were full. Proof: tests/unit/test_head_budgets.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class HeadColumns:
    """The columns of one layer.

    Attributes:
        sizes: the budget of every kv head.
        smallest: the smallest budget of all heads of the model, before which the first event comes.
        num_evicted: E, thoughts that leave a head at once.
    """

    sizes: tuple[int, ...]
    smallest: int
    num_evicted: int

    @property
    def largest(self) -> int:
        """Most columns of thoughts: the budget of the largest head."""
        return max(self.sizes)

    @cached_property
    def groups(self) -> tuple[tuple[int, list[int]], ...]:
        """(budget, its heads), budgets ascending: the heads of one budget are shown to an eviction policy together."""
        return tuple(
            (size, [head for head, other in enumerate(self.sizes) if other == size]) for size in sorted(set(self.sizes))
        )

    def num_late(self, size: int) -> int:
        """Events before the first one at which a head of this budget is full."""
        return (size - self.smallest) // self.num_evicted

    def due(self, event: int) -> tuple[bool, ...]:
        """Whether each head evicts at an event."""
        return tuple(event >= self.num_late(size) for size in self.sizes)

    def sheds(self, event: int) -> bool:
        """Whether the layer has E columns fewer after an event: all its heads are full."""
        return event >= self.num_late(self.largest)

    def num_columns(self, event: int) -> int:
        """Columns of thoughts in front of an event."""
        return min(self.largest, self.smallest + event * self.num_evicted)

    def blank(self, events: int) -> tuple[int, ...]:
        """Blank columns of each head after so many events."""
        shed = max(0, events - self.num_late(self.largest))
        return tuple((max(0, events - self.num_late(size)) - shed) * self.num_evicted for size in self.sizes)

    def num_gone(self, events: int) -> tuple[int, ...]:
        """Thoughts that each head has evicted in the first `events` events."""
        return tuple(max(0, events - self.num_late(size)) * self.num_evicted for size in self.sizes)
