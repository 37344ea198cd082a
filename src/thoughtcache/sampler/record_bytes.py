"""Computes the bytes that the records of a `rollout` call take, from the integers of its schedule, before it samples.

Letters as in `records.py`: P prompt tokens, T thoughts. Counted is what the rollouts hold when the call returns,
wherever it is; token ids are Python integers and are not counted. Proof: tests/properties/test_record_bytes.py, against
the bytes of the records themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from thoughtcache.cache.eviction import find_eviction_policy
from thoughtcache.cache.schedule import num_evictions
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.records import CacheSettings, TokenFilters, slot_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemBytes:
    """Bytes of one item of every kind, all layers together but for slots; 0 for what is not recorded.

    Attributes:
        state: the thought state after one eviction.
        slots: which slots left one layer in one eviction.
        token: the keys and values of one processed token.
        thought: log-probabilities and entropy of one thought token.
    """

    state: int
    slots: int
    token: int
    thought: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordBytes:
    """Bytes of all records of a call by kind.

    Attributes:
        states: thought states (the anchors).
        slots: evicted slots.
        keys_values: keys and values.
        scores: log-probabilities and entropies.
    """

    states: int
    slots: int
    keys_values: int
    scores: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.states + self.slots + self.keys_values + self.scores


def record_bytes(
    items: ItemBytes,
    num_prompt_tokens: Sequence[int],
    num_thoughts: Sequence[int],
    sizes: Sequence[int | None],
    num_evicted: int | None,
) -> RecordBytes:
    """Bytes of the records of sequences of given lengths.

    Args:
        items: bytes of one item of every kind.
        num_prompt_tokens: P of each sequence.
        num_thoughts: T of each; the last thought is drawn and not processed.
        sizes: resident thoughts of every layer, None for the full cache.
        num_evicted: thoughts that leave at once.
    """
    by_layer = [[num_evictions(count - 1, size, num_evicted) for count in num_thoughts] for size in sizes]
    processed = sum(num_prompt_tokens) + sum(num_thoughts) - len(num_thoughts)
    return RecordBytes(
        states=max(map(sum, by_layer)) * items.state,  # events are those of the smallest budget
        slots=sum(map(sum, by_layer)) * items.slots,
        keys_values=processed * items.token,
        scores=sum(num_thoughts) * items.thought,
    )


def item_bytes(
    policy: PolicyHandle, cache: CacheSettings, filters: TokenFilters, *, keys_values: bool, anchors: bool = True
) -> ItemBytes:
    """Sizes of what a model records under some settings.

    Args:
        policy: the parts of the model.
        cache: cache settings of the sampling.
        filters: filters of all sequences.
        keys_values: whether keys, values and entropies are recorded.
        anchors: whether thought states are recorded.
    """
    tuner = policy.tuner
    layers, heads, head_size = tuner.num_layers, *tuner.kv_shape
    dtype = tuner.model.dtype
    state = tuner.memory().state_bytes if anchors else 0
    num_scores = 1 + filters.active + keys_values
    return ItemBytes(
        state=state,
        slots=heads * recorded_slot_bytes(cache),
        token=2 * layers * heads * head_size * dtype.itemsize if keys_values else 0,
        thought=num_scores * torch.promote_types(dtype, torch.float32).itemsize,
    )


def recorded_slot_bytes(cache: CacheSettings) -> int:
    """Bytes of the slots of one eviction that are recorded per layer and head; 0 where the oldest leave."""
    if cache.largest_budget is None or not find_eviction_policy(cache.eviction).chooses:
        return 0
    return (cache.num_evicted or 0) * slot_dtype(cache.largest_budget).itemsize


def check_record_bytes(needed: RecordBytes, allowed: int, num_sequences: int) -> None:
    """Refuse a call whose records could outgrow a bound.

    Raises:
        ValueError: if they could; the message names the bytes of every kind and what makes them fewer.
    """
    if needed.total <= allowed:
        return
    raise ValueError(
        f"max_record_bytes={allowed} is less than the {needed.total} bytes that the records of {num_sequences} "
        f"sequences take at max_new_tokens (thought states {needed.states}, evicted slots {needed.slots}, keys and "
        f"values {needed.keys_values}, scores {needed.scores}); pass fewer prompts at a time, lower max_new_tokens"
        + (", leave record_kv out" if needed.keys_values else "")
        + (", widen the window or raise evict_fraction" if needed.states + needed.slots else "")
        + ", or raise max_record_bytes"
    )
