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
    keys: Float[Tensor, "B H W D"],
    values: Float[Tensor, "B H W D"],
    slots: Int[Tensor, "B H E"] | None,
    num_evicted: int,
    rotation: KeyRotation | None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((evicted keys, values), (kept keys, values)) of one layer's resident thoughts; differentiable.

    Args:
        keys: of the resident thoughts.
        values: of the resident thoughts.
        slots: which ones leave, ascending; None means the oldest.
        num_evicted: E.
        rotation: moves the kept keys to the positions of the slots that they now have; None leaves them.
    """
    evicted_keys, kept_keys = split_slots(keys, slots, num_evicted)
    evicted_values, kept_values = split_slots(values, slots, num_evicted)
    if rotation is not None and slots is None:
        kept_keys = rotation.shift(kept_keys, -num_evicted)
    elif rotation is not None and slots is not None:
        places = torch.arange(keys.shape[2], device=keys.device)
        before = places.expand(*keys.shape[:3]).unsqueeze(-1)
        _, stayed = split_slots(before, slots, num_evicted)
        kept_keys = rotation.shift(kept_keys, places[: stayed.shape[2]] - stayed.squeeze(-1))
    return (evicted_keys, evicted_values), (kept_keys, kept_values)
