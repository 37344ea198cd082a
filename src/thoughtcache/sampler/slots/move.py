"""What an eviction does in the slots after the choice of what leaves; it is compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from thoughtcache.cache.evict import evict_layer, first_positions, leave_with_gaps, leaving_positions
from thoughtcache.cache.head_columns import leaving_columns
from thoughtcache.sampler.slots.window_block import WindowBlock

if TYPE_CHECKING:
    from thoughtcache.sampler.slots.slot_cache import SlotCache

MoveFn = Callable[["SlotCache", list[WindowBlock], list[Tensor | None] | None, int], list[Tensor] | None]
"""The form of `move_thoughts`."""


def move_thoughts(
    cache: SlotCache, windows: list[WindowBlock], chosen: list[Tensor | None] | None, stage: int
) -> list[Tensor] | None:
    """Close the gap that the leaving thoughts make and absorb them; never holds copies of more than one layer.

    Args:
        cache: cache of the slots.
        windows: the thoughts of the slots in question, for layers of every budget.
        chosen: [n, H, E] which of them leave, per layer that is full; None if the oldest do.
        stage: the event, see `evict_layer`.

    Returns:
        The states [n, ...] of all layers after it; None where nothing absorbs.
    """
    states, rules = [], cache.rules
    assert rules.budgets is not None
    rows, index_of = windows[0].rows, windows[0].index
    following = cache.positions[rows]
    oldest: dict[int, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        state = None if cache.states is None else cache.states[index][index_of]
        if not rules.budgets.is_due(index, stage):
            if rules.absorb is not None and state is not None:
                states.append(state)
            continue
        window = windows[layer.group]
        slots = None if chosen is None else chosen[index]
        keys, values = window.read(layer.keys), window.read(layer.values)
        positions = None
        if slots is not None and cache.kept:
            kept, gone = cache.kept[index], slots
            columns = rules.budgets.of_heads(index)
            if columns is not None:
                gone = leaving_columns(columns, stage, slots, columns.largest, slots)
            positions, kept[index_of] = leave_with_gaps(kept[index_of], following, gone)
        elif rules.reads_positions:
            positions = oldest.get(layer.group)
            if positions is None:
                first = first_positions(rules.budgets, index, following)
                positions = leaving_positions(slots, first, rules.num_evicted)
            if slots is None and rules.budgets.heads is None:  # layers of one budget share them
                oldest[layer.group] = positions
        kept_keys, kept_values, state = evict_layer(rules, index, stage, keys, values, slots, state, positions)
        window.write(layer.keys, kept_keys)
        window.write(layer.values, kept_values)
        if rules.absorb is not None and cache.states is not None and state is not None:
            states.append(state)
            cache.states[index][index_of] = state
            read = None if cache.read_states is None else cache.reader.of_linears([state])
            if cache.read_states is not None and read is not None:
                cache.read_states[index][index_of] = read[0]
    return states or None
