"""The events that an engine tells while it works. `request` is the number that `Engine.add` gave."""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.records import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A request has a slot, and its prompt was processed."""

    request: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """New tokens of a request, in order, nothing behind its end; told only where the engine streams."""

    request: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evicting:
    """Windows are full; what follows until `Evicted` is choice, move and absorption."""

    requests: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evicted:
    """Thoughts of these requests have left and were absorbed."""

    requests: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A request is over; its slot is free."""

    request: int
    rollout: Rollout


Event = Started | Tokens | Evicting | Evicted | Finished
