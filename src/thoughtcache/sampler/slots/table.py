"""Everything of a sampler that has one row per slot, registered in one place.

The parts of a sampler keep their tensors, host arrays and lists as plain attributes and tell the table which of them
have a row per slot. The table alone resets the rows of slots in which a sequence begins, drops rows and makes room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thoughtcache.cache.host_integers import Integers, to_device

KEEP = object()
"""Initial value of what a reset leaves alone, because whoever admits a sequence writes it."""


class SlotTable:
    """Knows every value that has one row per slot.

    Args:
        num_slots: sequences at once.
        device: where the tensors lie.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.device = device
        self._columns: list[tuple[Any, Any, Any]] = []

    def own(self, owner: Any, *names: str | int, initial: Any = KEEP) -> None:
        """Register values of an owner.

        Args:
            owner: an object with attributes of these names, or a list with values at these places.
            names: names or places of tensors, arrays or lists with one entry per slot; values of None are skipped.
            initial: what `reset` writes into a row: a number, a tensor that is broadcast, or a function that makes the
                entry of a list.
        """
        self._columns += [(owner, name, initial) for name in names]

    def reset(self, slots: Sequence[int]) -> None:
        """Put the initial values into these rows."""
        if not slots:
            return
        rows: Tensor | None = None
        for owner, name, initial in self._columns:
            value = _get(owner, name)
            if value is None or initial is KEEP:
                continue
            if isinstance(value, list):
                for slot in slots:
                    value[slot] = initial() if callable(initial) else initial
            elif isinstance(value, Tensor):
                rows = to_device(np.array(slots), self.device) if rows is None else rows
                value[rows] = initial
            else:
                value[list(slots)] = initial

    def keep(self, slots: Integers) -> None:
        """Drop all other rows; the kept ones move up in their order."""
        rows = to_device(slots, self.device)
        for owner, name, _ in self._columns:
            value = _get(owner, name)
            if isinstance(value, list):
                _set(owner, name, [value[slot] for slot in slots])
            elif value is not None:
                _set(owner, name, value[rows if isinstance(value, Tensor) else slots])
        self.num_slots = len(slots)


def _get(owner: Any, name: str | int) -> Any:
    return owner[name] if isinstance(name, int) else getattr(owner, name)


def _set(owner: Any, name: str | int, value: Any) -> None:
    if isinstance(name, int):
        owner[name] = value
    else:
        setattr(owner, name, value)
