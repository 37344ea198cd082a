"""The choice of what leaves one layer, for every cache that chooses: the policy is shown the layer, the log follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thoughtcache.cache.eviction.view import EvictionView
from thoughtcache.cache.query_log import QueryLog, Sight
from thoughtcache.cache.window_rules import WindowRules


def choose_layer(
    rules: WindowRules,
    layer_index: int,
    keys: Float[Tensor, "B H W D"],
    values: Float[Tensor, "B H W D"],
    events: Sequence[tuple[int, int]],
    stage: int,
    seen: tuple[QueryLog, Sight, Float[Tensor, "B H C D"]] | None,
    num_last: Int[Tensor, " B"] | None = None,
) -> Int[Tensor, "B H E"] | None:
    """Ask the eviction policy for one layer, and move what its log keeps of that layer.

    Args:
        rules: what bounds the cache.
        layer_index: decoder layer, from 0.
        keys: cached keys of the resident thoughts.
        values: cached values of the resident thoughts.
        events: (seed of the sequence, which of its evictions this is) for every row.
        stage: an event that says what these say, see `evict_layer`.
        seen: the log of queries, what its last queries saw, and the cached keys of all columns; None where the policy
            wants no queries. Rows may stand there twice, since what is written twice is the same.
        num_last: newest thoughts of every row that leave after all others, see `EvictionView`.

    Returns:
        The thoughts that leave, ascending; None means the oldest. With budgets by head the policy is shown the full
        heads of one budget after another, as if they were all, and -1 stands in heads that are not full.
    """
    columns = None if rules.budgets is None else rules.budgets.of_heads(layer_index)
    if columns is None or not rules.eviction.chooses:
        return _choose(rules, layer_index, keys, values, events, stage, seen, num_last)
    found = torch.full((*keys.shape[:2], rules.num_evicted), -1, device=keys.device)
    for size, heads in columns.groups:
        if not columns.due(stage)[heads[0]]:
            continue
        group = seen
        if seen is not None:
            log, sight, of_all = seen
            group = log, sight.of_heads(heads, size, keys.shape[2] - size), of_all
        held, theirs = keys[:, heads, -size:], values[:, heads, -size:]
        slots = _choose(rules, layer_index, held, theirs, events, stage, group, num_last, heads[0])
        assert slots is not None, f"the policy {rules.eviction.name} chooses"
        found[:, heads] = slots
    return found


def _choose(
    rules: WindowRules,
    layer_index: int,
    keys: Float[Tensor, "B H W D"],
    values: Float[Tensor, "B H W D"],
    events: Sequence[tuple[int, int]],
    stage: int,
    seen: tuple[QueryLog, Sight, Float[Tensor, "B _ C D"]] | None,
    num_last: Int[Tensor, " B"] | None,
    first_head: int = 0,
) -> Int[Tensor, "B H E"] | None:
    """The same for kv heads that hold equally many thoughts, of which `first_head` is the first."""
    attended = scores = None
    if seen is not None:
        log, sight, columns = seen
        attended, scores = log.attended(layer_index, sight, columns), log.scores_of(layer_index, sight)
    view = EvictionView(
        layer_index=layer_index,
        keys=keys,
        values=values,
        num_evicted=rules.num_evicted,
        events=events,
        attended=attended,
        scores=scores,
        rotation=rules.query_rotation(layer_index),
        num_last=num_last,
        first_head=first_head,
    )
    slots = rules.eviction.select(view)
    if seen is not None and slots is not None:
        log, sight, _ = seen
        log.evict(layer_index, sight, slots, rules.rotation(layer_index), rules.roll(stage))
    return slots
