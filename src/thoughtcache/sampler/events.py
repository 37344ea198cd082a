"""The events that an engine tells while it works. `request` is the number that `Engine.add` gave."""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.records import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A request has a slot, and its prompt was processed.

    Attributes:
        request: number that `Engine.add` gave.
    """

    request: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """New tokens of a request; told only where the engine streams.

    Attributes:
        request: number that `Engine.add` gave.
        token_ids: the tokens in order, nothing behind its end.
    """

    request: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evicting:
    """Windows are full; what follows until `Evicted` is choice, move and absorption.

    Attributes:
        requests: numbers of the requests whose windows are full.
    """

    requests: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evicted:
    """Thoughts have left and were absorbed.

    Attributes:
        requests: numbers of the requests whose thoughts they were.
    """

    requests: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A request is over; its slot is free.

    Attributes:
        request: number that `Engine.add` gave.
        rollout: its record.
    """

    request: int
    rollout: Rollout


Event = Started | Tokens | Evicting | Evicted | Finished
