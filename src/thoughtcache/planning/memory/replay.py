"""Memory of the replaying learner by phase, in closed form: `learner/reverse.py` chunk by chunk.

In its backward pass two sets of keys and values are held besides the log: those of the chunk that runs again, and the
gradients that travel from chunk to chunk. Where budgets differ by layer, a moment is formed for every budget as if all
layers had it, and the mean is taken. That is exact for what layers hold, and near for what the running layer needs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from thoughtcache.cache.schedule import num_evictions
from thoughtcache.learner.chunk_plan import Chunk
from thoughtcache.planning.memory.layer import (
    DOWN,
    FP32,
    LayerNumbers,
    absorption_saved_bytes,
    adapter_bytes,
    factor_bytes,
    final_norm_bytes,
    forward_transient_bytes,
    graph_backward_bytes,
    graph_forward_bytes,
    has_mask,
    kv_bytes,
    last_layer_bytes,
    layer_numbers,
    logits_bytes,
    memory_bytes,
    reads_memory,
    saved_bytes,
)
from thoughtcache.planning.memory.parts import Parts, highest, mean
from thoughtcache.planning.model_size import model_size
from thoughtcache.planning.setting import PlanSetting, grouped_chunks
from thoughtcache.sampler.record_bytes import recorded_slot_bytes

COLUMN_BYTES = 4
"""The number of a resident column, or the position of a thought, takes so many bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Learner:
    """Everything that all phases share."""

    numbers: LayerNumbers
    groups: list[tuple[int, list[Chunk]]]
    rows: int
    checkpoint_layers: bool
    adapter_bytes: int
    anchors: int
    log: int
    states: int


def forward_parts(setting: PlanSetting, *, keeps_log: bool) -> Parts:
    """The highest point of a pass over all chunks without a graph.

    Args:
        setting: the run.
        keeps_log: whether keys and values of all tokens are kept (the learner), or not (the reference).
    """
    learner = _learner(setting)
    log = learner.log if keeps_log and not isinstance(setting.gradient, int) else 0
    states = learner.anchors if keeps_log else 0
    return highest(
        mean((count, _forward_chunk(learner, chunk, log, states)) for count, chunk in seen)
        for seen in _distinct(learner.groups)
    )


def backward_parts(setting: PlanSetting) -> Parts:
    """The highest point of the backward pass (with `recompute=False`: of the one graph)."""
    learner = _learner(setting)
    if not setting.recompute:
        return _graph(learner, learner.groups, gradients=0)
    if isinstance(setting.gradient, int):
        size = setting.gradient
        blocks = [
            [(count, list(block)) for _, block in groupby(chunks, key=lambda chunk: chunk.segment // size)]
            for count, chunks in learner.groups
        ]
        return highest(_graph(learner, list(block), gradients=1) for block in zip(*blocks, strict=True))
    *before, last = zip(*(chunks for _, chunks in learner.groups), strict=True)
    counts = [count for count, _ in learner.groups]
    shapes = {tuple(map(_key, seen)): seen for seen in before}
    moments = [
        mean(of_groups)
        for seen in (*shapes.values(), last)
        for of_groups in zip(
            *(
                [(count, parts) for parts in _backward_chunk(learner, chunk, is_last=seen is last)]
                for count, chunk in zip(counts, seen, strict=True)
            ),
            strict=True,
        )
    ]
    return highest(moments)


def _learner(setting: PlanSetting) -> _Learner:
    numbers = layer_numbers(setting)
    groups = grouped_chunks(setting)
    columns = setting.prompt_tokens + setting.max_new_tokens - 1
    return _Learner(
        numbers=numbers,
        groups=groups,
        rows=setting.batch,
        checkpoint_layers=setting.checkpoint_layers,
        adapter_bytes=adapter_bytes(setting),
        states=slot_state_bytes(setting, setting.batch),
        anchors=_entry_state_bytes(setting, len(groups[0][1])),
        log=(kv_bytes(numbers, setting.batch, columns) + resident_columns_bytes(setting)) * setting.logs_on_device
        + (0 if setting.device_type == "cuda" else leaving_thought_bytes(setting)),
    )


def _entry_state_bytes(setting: PlanSetting, num_chunks: int) -> int:
    """States on entry to every chunk; chunks of one segment share theirs, unless they come from records."""
    anchors = anchor_bytes(setting, setting.batch)
    if not setting.reuse or anchors == 0:
        return anchors
    return num_chunks * slot_state_bytes(setting, setting.batch)


def resident_columns_bytes(setting: PlanSetting) -> int:
    """Bytes of the lists of the thoughts that every chunk finds resident, where evictions choose.

    The lists are int32 by layer and head.
    """
    if not (setting.chooses or setting.cache.head_budgets) or num_events(setting) == 0:
        return 0
    thoughts = sum(
        count * max(0, chunk.entry - setting.prompt_tokens)
        for count, chunks in grouped_chunks(setting)
        for chunk in chunks
    )
    return setting.batch * thoughts * heads_of_layer(setting) * COLUMN_BYTES


def leaving_thought_bytes(setting: PlanSetting) -> int:
    """Where the learner counts which thoughts left, to un-rotate their keys; beside the recorded slots."""
    if not setting.numbers_thoughts:
        return 0
    leaving = layer_evictions(setting) * (setting.num_evicted or 0)
    return leaving * setting.batch * heads_of_layer(setting) * COLUMN_BYTES


def record_parts(setting: PlanSetting, rows: int) -> Parts:
    """Bytes that evictions record of so many rows on the device; a GPU hands the records to the host at once."""
    if setting.device_type == "cuda":
        return {}
    return {"thought states": anchor_bytes(setting, rows), "evicted slots": slot_bytes(setting, rows)}


def slot_bytes(setting: PlanSetting, rows: int) -> int:
    """Recorded slots of all evictions, where evictions choose them."""
    if not setting.chooses:
        return 0
    return layer_evictions(setting) * rows * heads_of_layer(setting) * recorded_slot_bytes(setting.cache)


def num_events(setting: PlanSetting) -> int:
    """Eviction events of a row; a layer of a larger budget joins in later."""
    return num_evictions(setting.max_new_tokens - 1, setting.cache.smallest_budget, setting.num_evicted)


def layer_evictions(setting: PlanSetting) -> int:
    """Evictions of a row, summed over layers."""
    inputs, evicted = setting.max_new_tokens - 1, setting.num_evicted
    firsts = setting.cache.first_budgets or [setting.window] * setting.model.num_hidden_layers
    return sum(count * num_evictions(inputs, size, evicted) for size, count in Counter(firsts).items())


def heads_of_layer(setting: PlanSetting) -> int:
    """Key-value heads of a layer."""
    size = model_size(setting.model)
    return size.kv // size.head_size


def slot_state_bytes(setting: PlanSetting, rows: int) -> int:
    """Thought states of so many sequences, of all layers."""
    if not setting.absorbs:
        return 0
    return int(rows * setting.model.num_hidden_layers * setting.state_numbers * FP32)


def anchor_bytes(setting: PlanSetting, rows: int) -> int:
    """Thought states after every eviction, of all layers."""
    return num_events(setting) * slot_state_bytes(setting, rows)


def _forward_chunk(learner: _Learner, chunk: Chunk, log: int, states: int) -> Parts:
    numbers, rows, tokens = learner.numbers, learner.rows, learner.rows * chunk.columns
    kept = chunk.entry - chunk.evicted if chunk.evicted else 0
    reads = reads_memory(numbers, chunk)
    layers = forward_transient_bytes(numbers, tokens, reads=reads, rows=rows, leaving=chunk.leaving)
    head = final_norm_bytes(numbers, tokens) + logits_bytes(numbers, rows, chunk)
    memory = memory_bytes(numbers, rows, chunk)
    return {
        "thought states": states + (learner.states if chunk.evicted else 0),  # before and after it was anchored
        "K/V log": log if chunk.entry else 0,  # made when the first chunk has run
        "resident K/V": kv_bytes(numbers, rows, chunk.entry + kept + chunk.leaving),
        "activations": memory + (layers if layers >= head else final_norm_bytes(numbers, tokens)),
        "logits": 0 if layers >= head else logits_bytes(numbers, rows, chunk),
    }


def _backward_chunk(learner: _Learner, chunk: Chunk, *, is_last: bool) -> list[Parts]:
    """The moments of one chunk that runs again; the last one is the first to do so."""
    numbers, rows, tokens = learner.numbers, learner.rows, learner.rows * chunk.columns
    arriving = 0 if is_last else chunk.leaving
    saved, forward, backward = _kept_and_running(learner, chunk)
    before = absorption_saved_bytes(numbers, rows, chunk) + memory_bytes(numbers, rows, chunk)
    new = learner.states if chunk.evicted else 0
    given = 0 if is_last or chunk.is_initial else learner.states
    common = {
        "gradients": learner.adapter_bytes,
        "thought states": learner.anchors + 2 * new + given,  # before and after it was anchored
        "K/V log": learner.log,
        "logits": 0,
    }
    resident = chunk.entry + chunk.leaving + arriving
    kept = chunk.entry - chunk.evicted if chunk.evicted else 0
    held = kept if learner.checkpoint_layers else 0
    layers: Parts = {
        **common,
        "resident K/V": kv_bytes(numbers, rows, resident + kept),
        "activations": saved + forward,
    }
    head: Parts = {
        **common,
        "resident K/V": kv_bytes(numbers, rows, resident + held),
        "activations": saved + final_norm_bytes(numbers, tokens) + rows * chunk.scored * _head_gradient(numbers),
        "logits": logits_bytes(numbers, rows, chunk),
    }
    back: Parts = {
        **head,
        "gradients": learner.adapter_bytes + factor_bytes(numbers, DOWN),
        "thought states": learner.anchors + new + given,
        "activations": saved + backward,
        "logits": 0,
    }
    end: Parts = {
        **common,
        "gradients": 2 * learner.adapter_bytes - learner.adapter_bytes // numbers.size.layers,  # the first layer's last
        "resident K/V": kv_bytes(numbers, rows, resident + held + chunk.entry),
        "activations": backward + before,
    }
    return [layers, head, back, end]


def _kept_and_running(learner: _Learner, chunk: Chunk) -> tuple[int, int, int]:
    """Activations of a chunk: (kept by all layers, the running layer's forward, the running layer's backward)."""
    numbers, rows, tokens = learner.numbers, learner.rows, learner.rows * chunk.columns
    mask = rows * numbers.mask_heads * chunk.columns * chunk.leaving if has_mask(numbers, chunk) else 0
    backward = mask + graph_backward_bytes(numbers, tokens)
    if not learner.checkpoint_layers:
        return saved_bytes(numbers, rows, chunk), mask + graph_forward_bytes(numbers, tokens), backward
    inputs = numbers.size.layers * tokens * numbers.size.hidden * numbers.base
    again = last_layer_bytes(numbers, rows, chunk) + kv_bytes(numbers, rows, chunk.leaving) // numbers.size.layers
    if not numbers.mixed:
        again -= tokens * numbers.size.hidden * FP32  # in fp32 the first norm keeps the input of the layer itself
    given = tokens * numbers.size.hidden * (2 * numbers.base + FP32 if numbers.mixed else numbers.base)
    return (
        inputs + absorption_saved_bytes(numbers, rows, chunk) + memory_bytes(numbers, rows, chunk),
        mask
        + forward_transient_bytes(
            numbers, tokens, reads=reads_memory(numbers, chunk), rows=rows, leaving=chunk.leaving
        ),
        again + max(mask + graph_forward_bytes(numbers, tokens) + given, backward),
    )


def _graph(learner: _Learner, groups: list[tuple[int, list[Chunk]]], *, gradients: int) -> Parts:
    """All of these chunks under one graph."""
    of_groups = [
        [(count, parts) for parts in _graph_moments(learner, chunks, gradients=gradients)] for count, chunks in groups
    ]
    return highest(mean(moment) for moment in zip(*of_groups, strict=True))


def _graph_moments(learner: _Learner, chunks: list[Chunk], *, gradients: int) -> list[Parts]:
    """At the head or in the layers of each chunk, from the last one to the first."""
    numbers, rows, last = learner.numbers, learner.rows, chunks[-1]
    saved, norms, resident, made = 0, 0, 0, 0
    moments: list[Parts] = []
    for chunk in chunks:
        tokens = rows * chunk.columns
        saved += saved_bytes(numbers, rows, chunk)
        norms += final_norm_bytes(numbers, tokens)
        resident += chunk.leaving
        made += learner.states if gradients and chunk.evicted else 0  # a block makes again what the forward pass kept
        arriving = 0 if chunk is last else chunk.leaving
        common = {
            "gradients": (gradients + (0 if chunk is last else 1)) * learner.adapter_bytes,
            "thought states": learner.anchors + made,
            "resident K/V": kv_bytes(numbers, rows, resident + arriving),
        }
        at_head = saved + norms + rows * chunk.scored * _head_gradient(numbers)
        in_layers = saved + norms - final_norm_bytes(numbers, tokens) + graph_backward_bytes(numbers, tokens)
        moments.append({**common, "activations": at_head, "logits": logits_bytes(numbers, rows, chunk)})
        moments.append({**common, "activations": in_layers, "logits": 0})
    return moments


def _head_gradient(numbers: LayerNumbers) -> int:
    return numbers.size.hidden * numbers.base


def _distinct(groups: list[tuple[int, list[Chunk]]]) -> list[list[tuple[int, Chunk]]]:
    """Chunks of distinct shapes, whatever segment they lie in, as the layers of every budget see them."""
    seen = [[(count, chunk) for chunk in chunks] for count, chunks in groups]
    of_index = [list(one) for one in zip(*seen, strict=True)]
    return list({tuple(_key(chunk) for _, chunk in one): one for one in of_index}.values())


def _key(chunk: Chunk) -> tuple[int, ...]:
    return (chunk.columns, chunk.entry, chunk.evicted, chunk.scored, chunk.is_initial)
