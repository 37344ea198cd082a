"""What an eviction does in the slots after the choice of what leaves; it is compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from thoughtcache.cache.evict import evict_layer, leave_with_gaps, leaving_positions
from thoughtcache.sampler.slots.window_block import WindowBlock

if TYPE_CHECKING:
    from thoughtcache.sampler.slots.slot_cache import SlotCache

MoveFn = Callable[["SlotCache", WindowBlock, list[Tensor] | None], list[Tensor] | None]
"""The form of `move_thoughts`."""


def move_thoughts(cache: SlotCache, window: WindowBlock, chosen: list[Tensor] | None) -> list[Tensor] | None:
    """Close the gap that the leaving thoughts make and absorb them; never holds copies of more than one layer.

    Args:
        cache: cache of the slots.
        window: the thoughts of the slots in question.
        chosen: [n, H, E] which of them leave, per layer; None if the oldest do.

    Returns:
        The new states [n, ...] per layer; None where nothing absorbs.
    """
    states, rules = [], cache.rules
    following = cache.positions[window.rows]
    oldest = leaving_positions(None, following - window.size, rules.num_evicted) if rules.reads_positions else None
    for index, layer in enumerate(cache.layers):
        slots = None if chosen is None else chosen[index]
        state = None if cache.states is None else cache.states[index][window.index]
        keys, values = window.read(layer.keys), window.read(layer.values)
        positions = oldest
        if slots is not None and cache.kept:
            kept = cache.kept[index]
            positions, kept[window.index] = leave_with_gaps(kept[window.index], following, slots)
        elif slots is not None and rules.reads_positions:
            positions = leaving_positions(slots, following - window.size, rules.num_evicted)
        kept_keys, kept_values, state = evict_layer(rules, index, keys, values, slots, state, positions)
        window.write(layer.keys, kept_keys)
        window.write(layer.values, kept_values)
        if rules.absorb is not None and cache.states is not None and state is not None:
            states.append(state)
            cache.states[index][window.index] = state
            read = None if cache.read_states is None else cache.reader.of_linears([state])
            if cache.read_states is not None and read is not None:
                cache.read_states[index][window.index] = read[0]
    return states or None
