"""Folds a slot: the older thoughts leave and are absorbed, the newer ones become prompt, and a new link begins there.

Keys and values of what stays are moved to other columns and are otherwise left as they were written. One slot at a
time: what leaves is as long as a step of the text, and no two of them are alike. The twin is `fold` in policy/naive.py.

Not covered: rolling positions, and budgets by layer or head, under which layers would keep different columns;
`check_goes_on` refuses them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thoughtcache.cache.base import States
from thoughtcache.cache.host_integers import to_device
from thoughtcache.sampler.slots.slot_cache import SlotCache


def fold_slot(cache: SlotCache, slot: int, num_kept: int) -> States:
    """Let all but the newest thoughts of a slot leave, and close the gap.

    Args:
        cache: the cache of the slots.
        slot: the slot.
        num_kept: newest thoughts that stay; they are behind the prompt then.

    Returns:
        The states [1, ...] per layer after it; None where there are none.
    """
    columns, rules = cache.columns, cache.rules
    start, stop = int(columns.prompts[slot]), int(columns.lengths[slot, 0])
    first_kept = stop - num_kept
    states = None if cache.states is None else [state[slot : slot + 1].clone() for state in cache.states]
    for index, layer in enumerate(cache.layers):
        row = slice(slot, slot + 1)
        if states is not None and rules.absorb is not None and first_kept > start:
            where = _positions(cache, slot, index, first_kept - start) if rules.reads_positions else None
            keys, values = (buffer[row, :, start:first_kept] for buffer in (layer.keys, layer.values))
            states[index] = rules.absorb(index, states[index], keys, values, where, None)
        for buffer in (layer.keys, layer.values):
            # What stays may lie where it goes.
            buffer[row, :, start : start + num_kept] = buffer[row, :, first_kept:stop].clone()
    return states


def begin_link(cache: SlotCache, slot: int, length: int, position: int, states: States, seed: int) -> None:
    """Begin a link in a slot that holds its initial values, behind the columns that are in its buffers.

    The next token that the slot processes belongs to the prompt: it is the last one of the link before.

    Args:
        cache: the cache of the slots.
        slot: the slot.
        length: columns that are there.
        position: position of the next token.
        states: [1, ...] per layer.
        seed: seed of the link.
    """
    rows = to_device(np.array([slot]), cache.device)
    cache.columns.fill([slot], rows, length)
    cache.columns.prompts[slot] += 1
    cache.positions[rows], cache.occupied[rows], cache.taken[slot], cache.seeds[slot] = position, 1, True, seed
    for index, state in enumerate(states or ()):
        assert cache.states is not None
        cache.states[index][rows] = state
        read = None if cache.read_states is None else cache.reader.of_linears([state])
        if cache.read_states is not None and read is not None:
            cache.read_states[index][rows] = read[0]
    if cache.kept:
        cache.number_first_thoughts(rows, position + 1)
    if cache.log is not None:
        cache.log.unheard[slot] = -1  # the next query is one of the prompt


def _positions(cache: SlotCache, slot: int, layer_index: int, num_leaving: int) -> Tensor:
    """[1, H or 1, n] positions of the oldest thoughts of a slot in one layer."""
    following = int(cache.positions[slot])
    num_resident = int(cache.columns.lengths[slot, 0] - cache.columns.prompts[slot])
    if not cache.kept or not cache.num_evictions[slot]:
        return torch.arange(following - num_resident, following, device=cache.device)[None, None, :num_leaving]
    kept = cache.kept[layer_index][slot : slot + 1]
    new = torch.arange(following - num_resident + kept.shape[2], following, device=cache.device, dtype=kept.dtype)
    return torch.cat([kept, new.expand(*kept.shape[:2], -1)], dim=2)[:, :, :num_leaving]
