"""Eviction policies: which resident thoughts leave when the window is full. One small class per file in `policies/`.

To add one: subclass `EvictionPolicy`, or `ScoredEviction` if it scores thoughts, give it a `name`, and list it in
`EVICTION_POLICIES` (`table.py`). The parity and property tests run over that table and cover it.
"""

from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.options import OptionValue, checked_options, default_options
from thoughtcache.cache.eviction.scored import AccumulatedEviction, ScoredEviction
from thoughtcache.cache.eviction.table import EVICTION_POLICIES, find_eviction_policy, make_eviction_policy
from thoughtcache.cache.eviction.view import EvictionView

__all__ = [
    "EVICTION_POLICIES",
    "AccumulatedEviction",
    "EvictionPolicy",
    "EvictionView",
    "OptionValue",
    "ScoredEviction",
    "checked_options",
    "default_options",
    "find_eviction_policy",
    "make_eviction_policy",
]
