"""What leaves the slots whose window is full: the eviction policy is shown every layer, and its choice is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from thoughtcache.cache.eviction.view import EvictionView
from thoughtcache.cache.host_integers import Integers, to_device
from thoughtcache.cache.query_log import QueryLog, Sight
from thoughtcache.sampler.slots.window_block import WindowBlock

if TYPE_CHECKING:
    from thoughtcache.sampler.slots.slot_cache import SlotCache


def choose(cache: SlotCache, window: WindowBlock, padded: Integers, slots: Integers) -> list[Tensor]:
    """[n, H, E] per layer: which thoughts leave.

    Args:
        cache: of the slots.
        window: their thoughts.
        padded: the slots of the window, the last one repeated where shapes are static.
        slots: the slots once.
    """
    eviction, log = cache.rules.eviction, cache.log
    events = [(cache.seeds[slot], int(cache.num_evictions[slot])) for slot in padded]
    if log is not None and eviction.accumulates:
        hear(cache, log, slots)
    sight = None if log is None else _sight(cache, log, padded)
    chosen = []
    for index, layer in enumerate(cache.layers):
        attended = scores = None
        if log is not None and sight is not None:
            attended, scores = log.attended(index, sight, _keys(cache, index, sight)), log.scores[index]
        view = EvictionView(
            layer_index=index,
            keys=window.read(layer.keys),
            values=window.read(layer.values),
            num_evicted=cache.rules.num_evicted,
            events=events,
            attended=attended,
            scores=None if scores is None else scores[window.rows],
        )
        selected = eviction.select(view)
        assert selected is not None, f"the policy {eviction.name} chooses"
        chosen.append(selected)
        if log is not None:
            once = slice(0, len(slots))  # what is written twice would move twice
            log.evict(index, window.rows[once], selected[once], cache.rules.rotation(index))
    return chosen


def hear(cache: SlotCache, log: QueryLog, slots: Integers) -> None:
    """Add the new queries of these slots to the running scores."""
    sight = _sight(cache, log, slots)
    for index in range(len(cache.layers)):
        log.hear(index, sight, _keys(cache, index, sight))
    log.unheard[slots] = 0


def _sight(cache: SlotCache, log: QueryLog, slots: Integers) -> Sight:
    """What the last queries of these slots saw."""
    lengths, starts = cache.lengths[slots], cache.prompts[slots]
    rows, on_device, first = (to_device(values, cache.device) for values in (slots, lengths, starts))
    return log.sight(rows, log.unheard[slots].tolist(), int(lengths.max()), on_device, first)


def _keys(cache: SlotCache, index: int, sight: Sight) -> Tensor:
    """[n, H, C, D] keys of all columns that somebody saw."""
    keys: Tensor = cache.layers[index].keys[sight.rows, :, : sight.visible.shape[2]]
    return keys
