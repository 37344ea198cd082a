"""Eviction policies: which resident thoughts leave when the window is full. One small class per file.

To add one: subclass `EvictionPolicy`, give it a `name`, list it in `POLICIES`, and the parity and property tests,
which run over that table, cover it.
"""

from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.random import RandomEviction
from thoughtcache.cache.eviction.sliding import SlidingEviction

POLICIES: dict[str, type[EvictionPolicy]] = {policy.name: policy for policy in (SlidingEviction, RandomEviction)}


def make_policy(name: str) -> EvictionPolicy:
    """The eviction policy called `name`.

    Args:
        name: a key of `POLICIES`.

    Raises:
        ValueError: if there is no such policy.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown eviction policy {name!r}; choose one of {sorted(POLICIES)}")
    return POLICIES[name]()


__all__ = ["POLICIES", "EvictionPolicy", "make_policy"]
