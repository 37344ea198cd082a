"""Eviction policies: which resident thoughts leave when the window is full. One small class per file.

To add one: subclass `EvictionPolicy`, give it a `name`, and list it in `EVICTION_POLICIES`. The parity and property
tests run over that table and cover it.
"""

from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.random import RandomEviction
from thoughtcache.cache.eviction.sliding import SlidingEviction

EVICTION_POLICIES: dict[str, type[EvictionPolicy]] = {
    policy.name: policy for policy in (SlidingEviction, RandomEviction)
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


__all__ = ["EVICTION_POLICIES", "EvictionPolicy", "make_eviction_policy"]
