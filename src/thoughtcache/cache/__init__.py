"""The bounded cache: its schedule (integers), its eviction policies, and the caches that transformers models read."""

from thoughtcache.cache.bounded_cache import BoundedCache, ReplayCache, StatefulCache
from thoughtcache.cache.slot_cache import SlotCache

__all__ = ["BoundedCache", "ReplayCache", "SlotCache", "StatefulCache"]
