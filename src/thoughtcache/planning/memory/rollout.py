"""Memory of sampling by phase, in closed form: `sampler/engine.py` over slots of a preallocated cache.

Letters: P prompt, W window, E evicted, V vocabulary.
"""

from __future__ import annotations

import torch

from thoughtcache.cache.eviction import make_eviction_policy
from thoughtcache.cache.eviction.scored import AccumulatedEviction
from thoughtcache.cache.schedule import num_evictions
from thoughtcache.planning.memory.attention_memory import scaled_weights_bytes, write_running_bytes
from thoughtcache.planning.memory.layer import (
    FP32,
    LayerNumbers,
    final_norm_bytes,
    forward_transient_bytes,
    kv_bytes,
    layer_numbers,
)
from thoughtcache.planning.memory.parts import Parts, add, highest
from thoughtcache.planning.memory.replay import COLUMN_BYTES, heads_of_layer, num_events, record_parts, slot_state_bytes
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.sampler.prefill import CHUNK_COLUMNS
from thoughtcache.sampler.weights.packed_linears import DTYPES, SMALLEST, worth_packing

FP64 = 8
DRAW_BYTES = 3 * FP32
"""Bytes per vocabulary entry and slot while a token is drawn: the distribution, and its probabilities in blocks."""


def rollout_parts(setting: PlanSetting) -> dict[str, Parts]:
    """Bytes that are alive at the highest point of every phase of sampling, with all slots in step."""
    numbers, slots, prompt = layer_numbers(setting), setting.decoded_at_once, setting.prompt_tokens
    widest = prompt + max(_held(setting, size) for size, _ in setting.layer_groups)
    prompts = -(-slots // setting.group)
    waiting = max(0, setting.completions - slots)
    states = slot_state_bytes(setting, slots)
    memory = sampler_memory_bytes(setting, numbers)
    cache = {
        "rollout K/V": slot_kv_bytes(setting, numbers),
        "thought states": states + memory + kept_position_bytes(setting),
        "eviction policy": query_log_bytes(setting, numbers),
    }
    scores = slots * setting.max_new_tokens * (FP64 + 8 + FP32)  # uniform numbers, tokens, log-probabilities
    before = {"recorded K/V": recorded_kv_bytes(setting, waiting), **record_parts(setting, waiting)}
    records = record_parts(setting, slots + waiting)
    during = add(cache, records, {"recorded K/V": recorded_kv_bytes(setting, slots + waiting)})
    token = forward_transient_bytes(numbers, slots, reads=True, rows=slots) + final_norm_bytes(numbers, slots)
    sharing = forward_transient_bytes(numbers, slots, reads=True, rows=slots, leaving=widest)
    layer = _eviction_bytes(setting, numbers)
    recorded = num_events(setting) > 1  # room for all is made by the first one
    phases: dict[str, Parts] = {
        "prefill": {
            **before,
            "rollout K/V": kv_bytes(numbers, prompts, prompt),
            "thought states": before.get("thought states", 0) + states + 2 * memory,  # the prompts have their own
            "eviction policy": query_log_bytes(setting, numbers),
            "activations": forward_transient_bytes(numbers, prompts * min(prompt, CHUNK_COLUMNS)) + scores,
        },
        # Each prompt once, and in the slots.
        "filling slots": add(cache, before, {"rollout K/V": kv_bytes(numbers, prompts, prompt), "activations": scores}),
        # In a layer, which may copy keys and values to tell the window's share, or at the head.
        "drawing": highest(
            [
                {**during, "activations": sharing + scores, "logits": 0},
                {**during, "activations": token + scores, "logits": DRAW_BYTES * slots * numbers.size.vocabulary},
            ]
        ),
        # New states beside the old ones; then the states of all layers in one piece, which is recorded.
        "evicting": highest(
            [
                add(during if recorded else add(cache, before), {"activations": states + layer + scores}),
                add(during, {"activations": 2 * states + scores}),
            ]
        ),
        # The pieces are joined for one sequence at a time; its states are handed over.
        "collecting": add(during, {"recorded K/V": recorded_kv_bytes(setting, 1), "activations": scores}),
    }
    packed = {"packed weights": packed_bytes(setting)}
    return {name: add(parts, packed) for name, parts in phases.items()}


def slot_kv_bytes(setting: PlanSetting, numbers: LayerNumbers) -> int:
    """Keys and values of all slots: every layer has room for the prompt and its own budget."""
    tokens = 0
    for size, count in setting.layer_groups:
        tokens += count * (setting.prompt_tokens + _held(setting, size))
    return kv_bytes(numbers, setting.decoded_at_once, tokens) // numbers.size.layers


def _held(setting: PlanSetting, budget: int | None) -> int:
    """Thoughts that a layer with this budget holds at most."""
    return setting.max_new_tokens if budget is None else min(budget, setting.max_new_tokens)


def sampler_memory_bytes(setting: PlanSetting, numbers: LayerNumbers) -> int:
    """What a sampler has of a memory in attention space beside its slots: initial states, and parameters as used."""
    if numbers.memory is None:
        return 0
    return slot_state_bytes(setting, 1) + numbers.size.layers * scaled_weights_bytes(numbers.memory)


def query_log_bytes(setting: PlanSetting, numbers: LayerNumbers) -> int:
    """The last queries that an eviction policy looks at, and its running scores, of all slots; `QueryLog.allocate`."""
    cache, size = setting.cache, numbers.size
    if cache.window is None or cache.smallest_budget is None:
        return 0
    eviction = make_eviction_policy(cache.eviction, dict(cache.eviction_options))
    num_queries = eviction.num_queries(cache.smallest_budget, setting.num_evicted or 0)
    if not num_queries:
        return 0
    queries = num_queries * size.heads * size.head_size * numbers.base
    scores = _columns(setting) * (size.kv // size.head_size) * max(FP32, numbers.base)
    per_slot = size.layers * queries + scores * isinstance(eviction, AccumulatedEviction)
    return setting.decoded_at_once * per_slot


def kept_position_bytes(setting: PlanSetting) -> int:
    """Where the thoughts that stay in the slots stood, by layer and head."""
    if not setting.numbers_thoughts:
        return 0
    kept = _columns(setting) - setting.model.num_hidden_layers * (setting.num_evicted or 0)
    return int(setting.decoded_at_once * kept * heads_of_layer(setting) * COLUMN_BYTES)


def _columns(setting: PlanSetting) -> int:
    """Columns of thoughts of all layers; a layer has those of its largest head."""
    return sum(count * (size or 0) for size, count in setting.layer_groups)


def packed_bytes(setting: PlanSetting) -> int:
    """The copy of the weights that sampling on a CPU reads: linears of the layers and the head, without small ones."""
    wanted = setting.pack_weights and setting.device_type == "cpu" and setting.learner == "replay"
    takes_dtype = getattr(torch, setting.dtype) in DTYPES
    if not (wanted and takes_dtype and worth_packing(setting.decoded_at_once, setting.max_new_tokens)):
        return 0
    numbers = layer_numbers(setting)
    sizes = [numbers.size.hidden * numbers.size.vocabulary]
    if not setting.load_in_4bit:
        sizes += numbers.size.layers * [inputs * outputs for inputs, outputs in numbers.shapes.values()]
    return numbers.base * sum(size for size in sizes if size >= SMALLEST)


def _eviction_bytes(setting: PlanSetting, numbers: LayerNumbers) -> int:
    """One eviction of all slots: in one layer, copies of what leaves, and its absorption or the shift of what stays."""
    evicted, slots, inputs = setting.num_evicted, setting.decoded_at_once, setting.max_new_tokens - 1
    evicting = [size for size, _ in setting.layer_groups if size is not None and num_evictions(inputs, size, evicted)]
    if evicted is None or not evicting:
        return 0
    window = max(evicting)
    tokens = slots * numbers.size.kv
    absorption = 2 * tokens * evicted * 2 * FP32 if setting.absorbs and numbers.has_state else 0
    if numbers.memory is not None:
        # Views, or in a new order where some are chosen: keys and values, and still those of the layer before.
        ordered = (3 if setting.rolls else 4) * tokens * window * numbers.base if setting.chooses else 0
        kept = tokens * (window - evicted) * numbers.base
        moved = 2 * kept if setting.rolls else 0  # keys at their new positions, and those of the layer before
        written = write_running_bytes(numbers.memory, slots, evicted)
        return ordered + moved + max(kept, written, absorption)
    shift = tokens * (window - evicted) * numbers.base
    copied = 2 * tokens * evicted * numbers.base
    return copied + max(shift, copied + absorption if absorption else 0)


def recorded_kv_bytes(setting: PlanSetting, rows: int) -> int:
    """Keys and values of all tokens that sampling records for the learner, on the device."""
    if not setting.reuse or setting.learner != "replay":
        return 0
    tokens = setting.prompt_tokens + setting.max_new_tokens - 1
    return kv_bytes(layer_numbers(setting), rows, tokens) if setting.logs_on_device else 0
