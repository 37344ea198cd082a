"""What one eviction did to some slots."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotEviction:
    """One eviction of some slots, the same layers in all of them.

    Attributes:
        slots: slots that were evicted from, ascending.
        states: [n, ...] their new states per layer; None where nothing absorbs.
        chosen: [n, M, H, E] resident thoughts that left the M layers that were full, -1 in heads that were not; None
            means the oldest.
    """

    slots: list[int]
    states: list[Float[Tensor, "n *state"]] | None
    chosen: Int[Tensor, "n M H E"] | None
