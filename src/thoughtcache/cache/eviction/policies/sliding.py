"""Oldest first: the paper's policy (arXiv 2602.16839, section on cache eviction)."""

from __future__ import annotations

from typing import ClassVar

from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.view import EvictionView
from thoughtcache.cache.schedule import eviction_points
from thoughtcache.records import Eviction


class SlidingEviction(EvictionPolicy):
    """The oldest thoughts leave, the same ones in every layer and head; nothing needs to be recorded."""

    name: ClassVar[str] = "sliding"
    summary: ClassVar[str] = "the newest (the paper)"
    chooses: ClassVar[bool] = False

    def select(self, view: EvictionView) -> None:
        """None: the oldest slots leave."""
        return None


def sliding_evictions(num_inputs: int, window: int | None, num_evicted: int | None) -> tuple[Eviction, ...]:
    """The record that this policy leaves over `num_inputs` processed thoughts; nothing for the full cache."""
    points = eviction_points(num_inputs, window, num_evicted)
    return tuple(Eviction(before_token=point, num_tokens=num_evicted or 0) for point in points)
