"""The one table of eviction policies, and how a name becomes a policy.

A policy of another package is found by its entry point, and loaded only when its name is asked for:

    [project.entry-points."thoughtcache.eviction"]
    largest-values = "my_package.policies:LargestValues"

Proof: tests/unit/test_eviction_table.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata

from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.options import OptionValue, checked_options
from thoughtcache.cache.eviction.policies.expected_attention import ExpectedAttentionEviction
from thoughtcache.cache.eviction.policies.h2o import H2OEviction
from thoughtcache.cache.eviction.policies.key_norm import KeyNormEviction
from thoughtcache.cache.eviction.policies.keydiff import KeyDiffEviction
from thoughtcache.cache.eviction.policies.random import RandomEviction
from thoughtcache.cache.eviction.policies.rkv import RKVEviction
from thoughtcache.cache.eviction.policies.scissorhands import ScissorhandsEviction
from thoughtcache.cache.eviction.policies.sliding import SlidingEviction
from thoughtcache.cache.eviction.policies.snapkv import SnapKVEviction
from thoughtcache.cache.eviction.policies.streaming import StreamingEviction
from thoughtcache.cache.eviction.policies.tova import TOVAEviction

ENTRY_POINTS = "thoughtcache.eviction"
"""Group of the entry points under which other packages register policies."""

EVICTION_POLICIES: dict[str, type[EvictionPolicy]] = {
    eviction.name: eviction
    for eviction in (
        SlidingEviction,
        StreamingEviction,
        RandomEviction,
        SnapKVEviction,
        H2OEviction,
        TOVAEviction,
        ScissorhandsEviction,
        RKVEviction,
        ExpectedAttentionEviction,
        KeyNormEviction,
        KeyDiffEviction,
    )
}
"""The policies of this package. An entry point of the same name is not looked at."""


def find_eviction_policy(name: str) -> type[EvictionPolicy]:
    """The class of an eviction policy.

    Args:
        name: a key of `EVICTION_POLICIES`, or the name of an entry point.

    Raises:
        ValueError: if there is no such policy, or if what the entry point names is none.
    """
    return EVICTION_POLICIES[name] if name in EVICTION_POLICIES else _load(name)


def make_eviction_policy(name: str, options: Mapping[str, OptionValue] | None = None) -> EvictionPolicy:
    """The eviction policy called `name`.

    Args:
        name: see `find_eviction_policy`.
        options: those of its settings that are not at their defaults.

    Raises:
        ValueError: see `find_eviction_policy`; or if the policy does not take the options.
    """
    policy = find_eviction_policy(name)
    return policy(**checked_options(policy, options or {}))


@cache
def _load(name: str) -> type[EvictionPolicy]:
    entries = {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}
    if name not in entries:
        known = sorted({*EVICTION_POLICIES, *entries})
        raise ValueError(f"eviction={name!r} is not known; choose one of {known}")
    place = entries[name].value
    try:
        found = entries[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"eviction={name!r} stands for {place}, which cannot be loaded ({error}); repair or remove the package "
            "that registers it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, EvictionPolicy) and getattr(found, "name", None) == name):
        raise ValueError(
            f"eviction={name!r} stands for {place}, which is no subclass of EvictionPolicy with name={name!r}; correct "
            "the package that registers it"
        )
    return found
