"""Chooses what leaves the slots whose window is full: the eviction policy sees every layer, and its choice is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from thoughtcache.cache.choice import choose_layer
from thoughtcache.cache.host_integers import Integers, to_device
from thoughtcache.cache.query_log import QueryLog, Sight
from thoughtcache.sampler.slots.window_block import WindowBlock

if TYPE_CHECKING:
    from thoughtcache.sampler.slots.slot_cache import SlotCache


def choose(cache: SlotCache, window: WindowBlock, slots: Integers) -> list[Tensor]:
    """[n, H, E] per layer: which thoughts leave.

    Args:
        cache: the cache of the slots.
        window: their thoughts.
        slots: the slots of the window; with static shapes some may stand there twice.
    """
    events = [(cache.seeds[slot], int(cache.num_evictions[slot])) for slot in slots]
    log = cache.log
    if log is not None and log.accumulator is not None:
        hear(cache, log, slots)
    sight = None if log is None else _sight(cache, log, slots)
    chosen = []
    for index, layer in enumerate(cache.layers):
        seen = None if log is None or sight is None else (log, sight, _keys(cache, index, sight))
        keys, values = window.read(layer.keys), window.read(layer.values)
        selected = choose_layer(cache.rules, index, keys, values, events, seen)
        assert selected is not None, f"the policy {cache.rules.eviction.name} chooses"
        chosen.append(selected)
    return chosen


def hear(cache: SlotCache, log: QueryLog, slots: Integers) -> None:
    """Add the new queries of these slots to the running scores."""
    sight = _sight(cache, log, slots)
    for index in range(len(cache.layers)):
        log.hear(index, sight, _keys(cache, index, sight))
    log.unheard[slots] = 0


def _sight(cache: SlotCache, log: QueryLog, slots: Integers) -> Sight:
    """The columns that the last queries of these slots saw."""
    lengths, starts = cache.lengths[slots], cache.prompts[slots]
    rows, on_device, first = (to_device(values, cache.device) for values in (slots, lengths, starts))
    return log.sight(rows, log.unheard[slots].tolist(), int(lengths.max()), on_device, first)


def _keys(cache: SlotCache, index: int, sight: Sight) -> Tensor:
    """[n, H, C, D] keys of all columns that somebody saw."""
    keys: Tensor = cache.layers[index].keys[sight.rows, :, : sight.visible.shape[2]]
    return keys
