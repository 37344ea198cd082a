"""One eviction of one layer, for every fast path: what leaves, what stays and where, and the state after it.

`policy/naive.py` says the same with lists. Axes: B rows, H kv heads, W resident thoughts, E that leave, K that stay, D.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from thoughtcache.cache.budgets import LayerBudgets
from thoughtcache.cache.head_columns import leaving_columns, with_blank_columns
from thoughtcache.cache.rotation import KeyRotation
from thoughtcache.cache.window_rules import WindowRules


def evict_layer(
    rules: WindowRules,
    layer_index: int,
    event: int,
    keys: Float[Tensor, "B H W D"],
    values: Float[Tensor, "B H W D"],
    slots: Int[Tensor, "B H E"] | None,
    state: Tensor | None,
    positions: Int[Tensor, "#B #H E"] | None,
) -> tuple[Float[Tensor, "B H K D"], Float[Tensor, "B H K D"], Tensor | None]:
    """The keys and values that stay, and the state that has absorbed the others; differentiable.

    Args:
        rules: what bounds the cache.
        layer_index: decoder layer, from 0.
        event: which event of its sequences this is, from 0; any one from `LayerBudgets.num_opening` on says the same.
        keys: cached keys of the resident thoughts.
        values: cached values of the resident thoughts.
        slots: thoughts that leave, ascending; None means the oldest. With budgets by head they are counted from the
            oldest that a head holds, and say nothing of heads that are not full.
        state: [B or 1, ...] of this layer, or None for the identity.
        positions: where the thoughts that leave stood, see `leaving_positions`; None unless `rules.reads_positions`.

    Returns:
        Kept keys, kept values (views of what was given where the oldest leave and nothing is moved), and the state.
    """
    columns = None if rules.budgets is None else rules.budgets.of_heads(layer_index)
    if columns is not None:
        keys, values = (with_blank_columns(columns, event, thoughts) for thoughts in (keys, values))
        slots = leaving_columns(columns, event, slots, keys.shape[2], keys)
    leaving_keys, kept_keys = split_thoughts(keys, slots, rules.num_evicted)
    leaving_values, kept_values = split_thoughts(values, slots, rules.num_evicted)
    rotation = rules.rotation(layer_index)
    if rotation is not None:
        kept_keys = _moved(kept_keys, rotation, slots, keys.shape[2], rules.roll(event))
    if rules.absorb is not None and state is not None:
        # Heads that are not full lose zeros.
        due = None if columns is None else columns.due(event)
        state = rules.absorb(layer_index, state, leaving_keys, leaving_values, positions, due)
    return kept_keys, kept_values, state


def leaving_positions(
    slots: Int[Tensor, "B H E"] | None, first: Int[Tensor, "#B #H"], num_evicted: int
) -> Int[Tensor, "#B #H E"]:
    """Positions of the thoughts that leave a window without gaps: the oldest ones, or any under rolling positions.

    Args:
        slots: thoughts that leave, ascending; None means the oldest.
        first: position of the first resident thought of each row, see `first_positions`.
        num_evicted: E.
    """
    start = first.unsqueeze(2)
    return start + (torch.arange(num_evicted, device=first.device) if slots is None else slots)


def first_positions(budgets: LayerBudgets, layer_index: int, following: Int[Tensor, " #B"]) -> Int[Tensor, "#B #H"]:
    """Positions of the first thoughts of a window without gaps in a full layer; with budgets by head, in full heads.

    Args:
        budgets: resident thoughts of every layer.
        layer_index: decoder layer, from 0.
        following: position of the next token of each row.
    """
    columns = budgets.of_heads(layer_index)
    if columns is None:
        return following.unsqueeze(1) - budgets.size(layer_index)
    return following.unsqueeze(1) - torch.tensor(columns.sizes, device=following.device)


def leave_with_gaps(
    kept: Int[Tensor, "B H K"], following: Int[Tensor, " #B"], slots: Int[Tensor, "B H E"]
) -> tuple[Int[Tensor, "B H E"], Int[Tensor, "B H K"]]:
    """Positions of the thoughts that leave a window with gaps, and of those that stay.

    Args:
        kept: positions of the thoughts that the eviction before left; of the first K thoughts before the first one.
        following: position of the next token of each row, in front of which E thoughts have come since then.
        slots: thoughts that leave, ascending; with budgets by head, columns of a layer that is full
            (`leaving_columns`), since a head's positions are as many as those of the largest one, blank ones first.
    """
    num_evicted = slots.shape[-1]
    steps = torch.arange(-num_evicted, 0, device=kept.device, dtype=kept.dtype)
    new = following.to(kept.dtype)[:, None, None] + steps
    resident = torch.cat([kept, new.expand(*kept.shape[:2], -1)], dim=-1)
    gone, stay = split_thoughts(resident.unsqueeze(-1), slots, num_evicted)
    return gone.squeeze(-1), stay.squeeze(-1)


def split_thoughts(
    thoughts: Num[Tensor, "B H W D"], slots: Int[Tensor, "B H E"] | None, num_evicted: int
) -> tuple[Num[Tensor, "B H E D"], Num[Tensor, "B H K D"]]:
    """Split what belongs to resident thoughts into (leaving, kept), both in their order in time.

    Args:
        thoughts: keys, values or anything else with one entry per thought.
        slots: slots that leave, ascending; None means the oldest.
        num_evicted: E.
    """
    if slots is None:
        return thoughts[:, :, :num_evicted], thoughts[:, :, num_evicted:]
    batch, heads, resident, size = thoughts.shape
    leaves = torch.zeros(batch, heads, resident, dtype=torch.bool, device=thoughts.device)
    leaves.scatter_(2, slots.long(), True)
    # A stable sort of the flags puts the kept slots first and keeps both groups in their order in time.
    order = leaves.to(torch.uint8).argsort(dim=-1, stable=True)
    ordered = thoughts.gather(2, order.unsqueeze(-1).expand(-1, -1, -1, size))
    return ordered[:, :, resident - num_evicted :], ordered[:, :, : resident - num_evicted]


def _moved(
    kept: Float[Tensor, "B H K D"],
    rotation: KeyRotation,
    slots: Int[Tensor, "B H E"] | None,
    num_resident: int,
    roll: int,
) -> Float[Tensor, "B H K D"]:
    """Kept keys side by side in front of the next token, which moves down by `roll` positions."""
    num_kept = kept.shape[2]
    if slots is None:
        return rotation.shift(kept, -roll) if roll else kept
    places = torch.arange(num_resident, device=kept.device)
    before = places.expand(*slots.shape[:2], -1).unsqueeze(-1)
    _, stayed = split_thoughts(before, slots, num_resident - num_kept)
    lift = num_resident - num_kept - roll  # 0, or E while a larger layer still fills up
    return rotation.shift(kept, places[:num_kept] + lift - stayed.squeeze(-1))
