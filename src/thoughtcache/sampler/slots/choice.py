"""Chooses what leaves the slots whose window is full: the eviction policy sees every layer, and its choice is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from thoughtcache.cache.choice import choose_layer
from thoughtcache.cache.host_integers import Integers, to_device
from thoughtcache.cache.query_log import QueryLog, Sight
from thoughtcache.sampler.slots.window_block import WindowBlock

if TYPE_CHECKING:
    from thoughtcache.sampler.slots.slot_cache import SlotCache


def choose(cache: SlotCache, windows: list[WindowBlock], slots: Integers, stage: int) -> list[Tensor | None]:
    """[n, H, E] per layer: which thoughts leave; None for a layer that is not full.

    Args:
        cache: the cache of the slots.
        windows: their thoughts, for layers of every budget.
        slots: the slots of the windows; with static shapes some may stand there twice.
        stage: the event, see `evict_layer`.
    """
    rules = cache.rules
    assert rules.budgets is not None
    events = [(cache.seeds[slot], int(cache.num_evictions[slot])) for slot in slots]
    log = cache.log
    if log is not None and log.accumulator is not None:
        hear(cache, log, slots)
    last = cache.columns.last[slots]
    num_last = to_device(last, cache.device) if last.any() else None
    sights = None if log is None else _sights(cache, log, slots)
    chosen: list[Tensor | None] = []
    for index, layer in enumerate(cache.layers):
        if not rules.budgets.is_due(index, stage):
            chosen.append(None)
            continue
        seen = None
        if log is not None and sights is not None:
            sight = sights[layer.group]
            seen = log, sight, _keys(cache, index, sight)
        window = windows[layer.group]
        keys, values = window.read(layer.keys), window.read(layer.values)
        selected = choose_layer(rules, index, keys, values, events, stage, seen, num_last)
        assert selected is not None, f"the policy {rules.eviction.name} chooses"
        chosen.append(selected)
    return chosen


def hear(cache: SlotCache, log: QueryLog, slots: Integers) -> None:
    """Add the new queries of these slots to the running scores."""
    sights = _sights(cache, log, slots)
    for index, layer in enumerate(cache.layers):
        sight = sights[layer.group]
        for part in _by_head(cache, index, sight):
            log.hear(index, part, _keys(cache, index, sight))
    log.unheard[slots] = 0


def _by_head(cache: SlotCache, index: int, sight: Sight) -> list[Sight]:
    """What the heads of one layer saw: all alike, or those of one budget after another."""
    columns = None if cache.rules.budgets is None else cache.rules.budgets.of_heads(index)
    if columns is None or cache.blanks is None:
        return [sight]
    blank = cache.blanks.of_layer(index)[sight.rows]
    return [sight.of_heads(heads, size, blank[:, heads[0]]) for size, heads in columns.groups]


def _sights(cache: SlotCache, log: QueryLog, slots: Integers) -> list[Sight]:
    """The columns that the last queries of these slots saw, in layers of every budget."""
    columns, counts = cache.columns, log.unheard[slots].tolist()
    assert columns.budgets is not None
    rows, first = (to_device(values, cache.device) for values in (slots, columns.prompts[slots]))
    sights = []
    for lengths, size in zip(columns.lengths[slots].T, columns.budgets.distinct, strict=True):
        on_device = to_device(np.ascontiguousarray(lengths), cache.device)
        sights.append(log.sight(rows, counts, int(lengths.max()), on_device, first, num_thoughts=size))
    return sights


def _keys(cache: SlotCache, index: int, sight: Sight) -> Tensor:
    """[n, H, C, D] keys of all columns that somebody saw."""
    keys: Tensor = cache.layers[index].keys[sight.rows, :, : sight.visible.shape[2]]
    return keys
