"""The rules that bound a cache: one value for every cache and every execution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from thoughtcache.cache.budgets import LayerBudgets
from thoughtcache.cache.eviction import EvictionPolicy
from thoughtcache.cache.rotation import KeyRotation, Rotations

AbsorbFn = Callable[[int, Tensor, Tensor, Tensor, Tensor | None, tuple[bool, ...] | None], Tensor]
"""(layer, state [B or 1, ...], evicted keys, evicted values [B, H, E, D], positions, heads) -> state [B, ...].

Positions [B or 1, H or 1, E] are those at which the keys were rotated; None for whoever does not look at them. Heads
says which kv heads evict, and keys and values of the others are zeros; None where all do.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowRules:
    """The rules that bound a cache: how many thoughts stay, which ones leave, and what becomes of both.

    Attributes:
        budgets: resident thoughts of every layer, and at which events they leave; None keeps everything.
        num_evicted: thoughts that leave at once; 0 where everything is kept.
        eviction: chooses which thoughts leave.
        absorb: makes a layer's next state of what leaves; None where the state never changes.
        rotations: move the keys that stay, by layer, with rolling positions; None with absolute ones.
        query_rotations: turn the queries that the eviction policy looks at, by layer; None where it turns none.
        absorbs_positions: whether `absorb` looks at positions.
    """

    budgets: LayerBudgets | None
    num_evicted: int
    eviction: EvictionPolicy
    absorb: AbsorbFn | None = None
    rotations: Rotations | None = None
    query_rotations: Rotations | None = None
    absorbs_positions: bool = False

    @property
    def num_queries(self) -> int:
        """Last queries that the eviction policy wants to see, by the smallest budget; 0 for none."""
        return 0 if self.budgets is None else self.eviction.num_queries(self.budgets.smallest, self.num_evicted)

    @property
    def reads_positions(self) -> bool:
        """Whether somebody asks where the thoughts that leave stood."""
        return self.absorb is not None and self.absorbs_positions

    @property
    def numbers_thoughts(self) -> bool:
        """Whether a cache has to keep positions, because somebody asks and its window has gaps."""
        return self.budgets is not None and self.reads_positions and self.eviction.chooses and self.rotations is None

    def rotation(self, layer_index: int) -> KeyRotation | None:
        """Moves the keys of one layer; None where they stay at their positions."""
        return None if self.rotations is None else self.rotations[layer_index]

    def roll(self, event: int) -> int:
        """Positions by which the next token moves down at an event; 0 with absolute positions."""
        return 0 if self.rotations is None or self.budgets is None else self.budgets.roll(event)

    def query_rotation(self, layer_index: int) -> KeyRotation | None:
        """Turns queries of one layer for the eviction policy; None where it turns none, or has no positions to turn."""
        return None if self.query_rotations is None else self.query_rotations[layer_index]
