"""One layer's resident thoughts, split into those that leave and those that stay."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from thoughtcache.cache.rotation import KeyRotation


def split_slots(
    block: Num[Tensor, "B H W D"], slots: Int[Tensor, "B H E"] | None, num_evicted: int
) -> tuple[Num[Tensor, "B H E D"], Num[Tensor, "B H K D"]]:
    """Split resident thoughts into (evicted, kept), both in their order in time."""
    if slots is None:
        return block[:, :, :num_evicted], block[:, :, num_evicted:]
    batch, heads, resident, size = block.shape
    leaves = torch.zeros(batch, heads, resident, dtype=torch.bool, device=block.device)
    leaves.scatter_(2, slots.long(), True)
    # A stable sort of the flags puts the kept slots first and keeps both groups in their order in time.
    order = leaves.to(torch.uint8).argsort(dim=-1, stable=True)
    ordered = block.gather(2, order.unsqueeze(-1).expand(-1, -1, -1, size))
    return ordered[:, :, resident - num_evicted :], ordered[:, :, : resident - num_evicted]


def evict_block(
    block: Float[Tensor, "B H W D"], slots: Int[Tensor, "B H E"] | None, num_evicted: int, rotation: KeyRotation | None
) -> tuple[Float[Tensor, "B H E D"], Float[Tensor, "B H K D"]]:
    """(evicted, kept) of one layer's resident keys, or values; differentiable. Without rotation and slots, views.

    Args:
        block: keys or values of the resident thoughts.
        slots: which ones leave, ascending; None means the oldest.
        num_evicted: E.
        rotation: moves kept keys to the positions of the slots that they now have; None for values, and for keys that
            keep their positions.
    """
    evicted, kept = split_slots(block, slots, num_evicted)
    if rotation is not None and slots is None:
        kept = rotation.shift(kept, -num_evicted)
    elif rotation is not None and slots is not None:
        places = torch.arange(block.shape[2], device=block.device)
        before = places.expand(*block.shape[:3]).unsqueeze(-1)
        _, stayed = split_slots(before, slots, num_evicted)
        kept = rotation.shift(kept, places[: stayed.shape[2]] - stayed.squeeze(-1))
    return evicted, kept
