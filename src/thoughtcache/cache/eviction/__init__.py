"""Eviction policies: which resident thoughts leave when the window is full. One small class per file.

To add one: subclass `EvictionPolicy`, or `ScoredEviction` if it scores thoughts, give it a `name`, and list it in
`EVICTION_POLICIES`. The parity and property tests run over that table and cover it.
"""

from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.h2o import H2OEviction
from thoughtcache.cache.eviction.random import RandomEviction
from thoughtcache.cache.eviction.scored import AccumulatedEviction, ScoredEviction
from thoughtcache.cache.eviction.sliding import SlidingEviction
from thoughtcache.cache.eviction.snapkv import SnapKVEviction
from thoughtcache.cache.eviction.view import EvictionView

EVICTION_POLICIES: dict[str, type[EvictionPolicy]] = {
    eviction.name: eviction for eviction in (SlidingEviction, RandomEviction, SnapKVEviction, H2OEviction)
}


def make_eviction_policy(name: str) -> EvictionPolicy:
    """The eviction policy called `name`.

    Args:
        name: a key of `EVICTION_POLICIES`.

    Raises:
        ValueError: if there is no such policy.
    """
    if name not in EVICTION_POLICIES:
        raise ValueError(f"unknown eviction policy {name!r}; choose one of {sorted(EVICTION_POLICIES)}")
    return EVICTION_POLICIES[name]()


__all__ = [
    "EVICTION_POLICIES",
    "AccumulatedEviction",
    "EvictionPolicy",
    "EvictionView",
    "ScoredEviction",
    "make_eviction_policy",
]
