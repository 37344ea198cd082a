"""Memory of the replaying learner by phase, in closed form: `learner/reverse.py` chunk by chunk.

In its backward pass two sets of keys and values are held besides the log: those of the chunk that runs again, and the
gradients that travel from chunk to chunk.
"""

from __future__ import annotations

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
from thoughtcache.planning.memory.parts import Parts, highest
from thoughtcache.planning.model_size import model_size
from thoughtcache.planning.setting import PlanSetting, learner_chunks
from thoughtcache.sampler.record_bytes import recorded_slot_bytes

COLUMN_BYTES = 4
"""The number of a resident column, or the position of a thought, takes so many bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Learner:
    """Everything that all phases share."""

    numbers: LayerNumbers
    chunks: list[Chunk]
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
    return highest(_forward_chunk(learner, chunk, log, states) for chunk in _distinct(learner.chunks))


def backward_parts(setting: PlanSetting) -> Parts:
    """The highest point of the backward pass (with `recompute=False`: of the one graph)."""
    learner = _learner(setting)
    if not setting.recompute:
        return _graph(learner, learner.chunks, gradients=0)
    if isinstance(setting.gradient, int):
        blocks = groupby(learner.chunks, key=lambda chunk: chunk.segment // int(setting.gradient))
        return highest(_graph(learner, list(block), gradients=1) for _, block in blocks)
    last = learner.chunks[-1]
    shapes = {(_key(chunk), chunk is last): chunk for chunk in learner.chunks}
    return highest(_backward_chunk(learner, chunk, is_last=is_last) for (_, is_last), chunk in shapes.items())


def _learner(setting: PlanSetting) -> _Learner:
    numbers = layer_numbers(setting)
    chunks = learner_chunks(setting)
    columns = setting.prompt_tokens + setting.max_new_tokens - 1
    return _Learner(
        numbers=numbers,
        chunks=chunks,
        rows=setting.batch,
        checkpoint_layers=setting.checkpoint_layers,
        adapter_bytes=adapter_bytes(setting),
        states=slot_state_bytes(setting, setting.batch),
        anchors=_entry_state_bytes(setting, len(chunks)),
        log=(kv_bytes(numbers, setting.batch, columns) + resident_columns_bytes(setting, chunks))
        * setting.logs_on_device
        + (0 if setting.device_type == "cuda" else leaving_thought_bytes(setting)),
    )


def _entry_state_bytes(setting: PlanSetting, num_chunks: int) -> int:
    """States on entry to every chunk; chunks of one segment share theirs, unless they come from records."""
    anchors = anchor_bytes(setting, setting.batch)
    if not setting.reuse or anchors == 0:
        return anchors
    return num_chunks * slot_state_bytes(setting, setting.batch)


def resident_columns_bytes(setting: PlanSetting, chunks: list[Chunk]) -> int:
    """Bytes of the lists of the thoughts that every chunk finds resident, where evictions choose.

    The lists are int32 by layer and head.
    """
    if not setting.chooses or num_evictions(setting.max_new_tokens - 1, setting.window, setting.num_evicted) == 0:
        return 0
    thoughts = sum(max(0, chunk.entry - setting.prompt_tokens) for chunk in chunks)
    return setting.batch * thoughts * layer_heads(setting) * COLUMN_BYTES


def leaving_thought_bytes(setting: PlanSetting) -> int:
    """Where the learner counts which thoughts left, to un-rotate their keys; beside the recorded slots."""
    if not setting.numbers_thoughts:
        return 0
    events = num_evictions(setting.max_new_tokens - 1, setting.window, setting.num_evicted)
    return events * setting.batch * (setting.num_evicted or 0) * layer_heads(setting) * COLUMN_BYTES


def record_parts(setting: PlanSetting, rows: int) -> Parts:
    """Bytes that evictions record of so many rows on the device; a GPU hands the records to the host at once."""
    if setting.device_type == "cuda":
        return {}
    return {"thought states": anchor_bytes(setting, rows), "evicted slots": slot_bytes(setting, rows)}


def slot_bytes(setting: PlanSetting, rows: int) -> int:
    """Recorded slots of all evictions, where evictions choose them."""
    if not setting.chooses:
        return 0
    events = num_evictions(setting.max_new_tokens - 1, setting.window, setting.num_evicted)
    return events * rows * layer_heads(setting) * recorded_slot_bytes(setting.cache)


def layer_heads(setting: PlanSetting) -> int:
    """Key-value heads of all layers."""
    size = model_size(setting.model)
    return size.layers * size.kv // size.head_size


def slot_state_bytes(setting: PlanSetting, rows: int) -> int:
    """Thought states of so many sequences, of all layers."""
    if not setting.absorbs:
        return 0
    return int(rows * setting.model.num_hidden_layers * setting.state_numbers * FP32)


def anchor_bytes(setting: PlanSetting, rows: int) -> int:
    """Thought states after every eviction, of all layers."""
    events = num_evictions(setting.max_new_tokens - 1, setting.window, setting.num_evicted)
    return events * slot_state_bytes(setting, rows)


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


def _backward_chunk(learner: _Learner, chunk: Chunk, *, is_last: bool) -> Parts:
    """One chunk that runs again; the last one is the first to do so."""
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
    return highest([layers, head, back, end])


def _kept_and_running(learner: _Learner, chunk: Chunk) -> tuple[int, int, int]:
    """Activations of a chunk: (kept by all layers, the running layer's forward, the running layer's backward)."""
    numbers, rows, tokens = learner.numbers, learner.rows, learner.rows * chunk.columns
    mask = rows * chunk.columns * chunk.leaving if has_mask(numbers, chunk) else 0
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


def _graph(learner: _Learner, chunks: list[Chunk], *, gradients: int) -> Parts:
    """All of these chunks under one graph: at the head or in the layers of each, from the last one to the first."""
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
    return highest(moments)


def _head_gradient(numbers: LayerNumbers) -> int:
    return numbers.size.hidden * numbers.base


def _distinct(chunks: list[Chunk]) -> list[Chunk]:
    """Chunks of distinct shapes, whatever segment they lie in."""
    return list({_key(chunk): chunk for chunk in chunks}.values())


def _key(chunk: Chunk | None) -> tuple[int, ...]:
    return () if chunk is None else (chunk.columns, chunk.entry, chunk.evicted, chunk.scored, chunk.is_initial)
