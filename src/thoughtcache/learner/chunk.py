"""One piece of a replay: evict and absorb on entry, run the backbone, score. The learner's unit of work.

What passes from one chunk to the next is a `Boundary`: the resident keys and values, and the thought states. The
learner decides nothing: lengths give the chunks, the record gives the evicted slots, the anchors give the states.

Rows whose thoughts are over take no part in later chunks: a chunk runs on the rows up to the last unfinished one, so
rows sorted by falling length cost exactly what they contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from thoughtcache.adapter.attention import QueryObserver
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.cache.base import States
from thoughtcache.cache.evict import evict_layer, first_positions, leaving_positions
from thoughtcache.cache.replay_cache import ReplayCache
from thoughtcache.cache.window_rules import WindowRules
from thoughtcache.learner.attention import lower_right_attention
from thoughtcache.learner.chunk_plan import Chunk, cuts_past, cuts_states, plan_chunks
from thoughtcache.learner.layer_checkpoint import checkpointed_layers
from thoughtcache.policy.batch import RolloutBatch
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.modes import GradientMode
from thoughtcache.policy.scores import ScoreFunction
from thoughtcache.state.memory import Memory

Past = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Boundary:
    """Values that one chunk hands to the next: resident keys and values ([rows, H, n, D]) and states, per layer."""

    past: Past | None = None
    states: States = None


def batch_chunks(batch: RolloutBatch, chunk_tokens: int | None = None, *, given: int = 0) -> list[Chunk]:
    """The chunks of a batch in order, as the layers of the smallest budget see them; see `plan_chunks`."""
    cache, width = batch.settings.cache, batch.prompts.ids.shape[1]
    return plan_chunks(batch.lengths, width, cache.smallest_budget, cache.num_evicted, chunk_tokens, given=given)


def run_chunk(
    policy: PolicyHandle,
    batch: RolloutBatch,
    chunk: Chunk,
    entry: Boundary,
    score: ScoreFunction,
    *,
    anchored: bool,
    checkpoint_layers: bool = False,
    known: tuple[Tensor, ...] | None = None,
    memory: Memory | None = None,
    observer: QueryObserver | None = None,
) -> tuple[tuple[Tensor, ...], Boundary]:
    """Evict and absorb if a segment opens here, run the backbone, score.

    Args:
        policy: the parts of the model.
        batch: the rollouts.
        chunk: what to run.
        entry: the exit of the chunk before; ignored by the first chunk, unless it is given prompt columns.
        score: see `scores.ScoreFunction`.
        anchored: replace recomputed states by recorded values, with the gradient of the recomputed ones.
        checkpoint_layers: keep the inputs of the layers for the backward pass and run each layer again there.
        known: scores of this chunk from an earlier pass, see `ScoreFunction`.
        memory: what learns from the tokens that leave, instead of the active adapter's own.
        observer: is shown the queries of every layer.

    Returns:
        Scores [rows, last_score - first_score], none inside the prompt; and the exit.
    """
    tuner = policy.tuner
    memory = tuner.memory() if memory is None else memory
    if chunk.is_first and not chunk.given:
        entry = Boundary(states=memory.initial_states())
    entry = _leading_rows(entry, chunk.rows)
    past, states = entry.past, entry.states
    if chunk.evicts:
        assert past is not None
        slots = recorded_slots(batch, chunk.segment - 1, chunk.rows, policy.device)
        rules = tuner.window_rules(batch.settings.cache, memory)
        past, absorbed = _evict(rules, batch, chunk, past, slots, states)
        if absorbed is not states and absorbed is not None:
            states = _anchor(absorbed, batch, chunk.segment - 1) if anchored else absorbed
    reader, is_initial = memory.reader(), chunk.is_initial
    cache = ReplayCache(
        tuner.num_layers,
        past,
        chunk.start,
        states,
        reader,
        is_initial=is_initial,
        observer=observer,
        num_prompt_columns=batch.prompts.ids.shape[1],
        blank=None if batch.budgets is None else batch.budgets.blank(chunk.segment),
    )
    columns = cache.physical_length + chunk.stop - chunk.start
    layers = checkpointed_layers(tuner, cache) if checkpoint_layers else nullcontext()
    with lower_right_attention(tuner.model.config), layers:
        output = policy.backbone(
            input_ids=batch.inputs(chunk.start, chunk.stop)[: chunk.rows],
            attention_mask=batch.prompts.leading_columns_mask(columns, chunk.rows),
            position_ids=chunk_positions(batch, chunk),
            use_cache=True,
            **cache_keyword(policy.backbone, cache),
        )
    leaving = Boundary(past=[(layer.keys, layer.values) for layer in cache.layers], states=states)
    if chunk.first_score == chunk.last_score:
        return (), leaving
    hidden = output.last_hidden_state[:, chunk.first_score - chunk.last_score :]
    return score(hidden, chunk.first_score, chunk.last_score, known), leaving


def cut(entry: Boundary, chunk: Chunk, gradient: GradientMode) -> Boundary:
    """Detach what the gradient mode cuts on entry to a chunk (see `cuts_past`, `cuts_states`)."""
    past, states = entry.past, entry.states
    if past is not None and cuts_past(chunk, gradient):
        past = [(keys.detach(), values.detach()) for keys, values in past]
    if states is not None and cuts_states(chunk, gradient):
        states = [state.detach() for state in states]
    return Boundary(past=past, states=states)


def join_scores(parts: Sequence[tuple[Tensor, ...]], num_rows: int) -> tuple[Tensor, ...]:
    """Scores of successive chunks as [B, T] tensors; zero where a row took no part."""
    scored = [part for part in parts if part]
    return tuple(
        torch.cat([with_rows(piece, num_rows) for piece in column], dim=1) for column in zip(*scored, strict=True)
    )


def with_rows(tensor: Tensor, rows: int) -> Tensor:
    """Zeros for the rows that took no part."""
    missing = rows - tensor.shape[0]
    return tensor if missing == 0 else torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])


def recorded_slots(batch: RolloutBatch, event: int, rows: int, device: torch.device) -> Tensor | None:
    """[rows, M, H, E] recorded slots of one eviction; rows that had ended get a valid dummy. None: the oldest."""
    slots = batch.recorded_slots(event, rows)
    return None if slots is None else slots.to(device)


def slots_of_layer(batch: RolloutBatch, event: int, layer_index: int, slots: Tensor | None) -> Tensor | None:
    """[rows, H, E] of the recorded slots [rows, M, H, E] of an event, for a layer that is full at it."""
    assert batch.budgets is not None
    return None if slots is None else slots[:, batch.budgets.place(layer_index, event)]


def recorded_thoughts(batch: RolloutBatch, chunk: Chunk, layer_index: int, slots: Tensor | None) -> Tensor:
    """[rows or 1, H or 1, E] thoughts, counted from 0, that leave one layer on entry to a chunk.

    Args:
        batch: the rollouts.
        chunk: a chunk that evicts.
        layer_index: decoder layer, from 0.
        slots: [rows, H, E] recorded slots of this layer; None for the oldest.
    """
    event, budgets = chunk.segment - 1, batch.budgets
    assert budgets is not None
    if slots is not None:
        place = budgets.place(layer_index, event)
        return batch.leaving_thoughts[event][: chunk.rows, place].to(slots.device)
    device, columns = batch.prompts.lengths.device, budgets.of_heads(layer_index)
    oldest = torch.arange(budgets.num_evicted, device=device)
    if columns is not None:
        return (oldest + torch.tensor(columns.num_gone(event), device=device)[:, None])[None]
    return (oldest + budgets.num_evictions(layer_index, event) * budgets.num_evicted)[None, None]


def recorded_positions(batch: RolloutBatch, chunk: Chunk, layer_index: int, slots: Tensor | None) -> Tensor:
    """[rows, H or 1, E] positions of these thoughts; the arguments are those of `recorded_thoughts`."""
    first, budgets, event = batch.prompts.first[: chunk.rows], batch.budgets, chunk.segment - 1
    assert budgets is not None
    if batch.settings.positions == "rolling":
        following = budgets.smallest + event * budgets.num_evicted - budgets.rolled(event)
        following_thoughts = first_positions(budgets, layer_index, first + following)
        return leaving_positions(slots, following_thoughts, budgets.num_evicted)
    return first[:, None, None] + recorded_thoughts(batch, chunk, layer_index, slots)


def chunk_positions(batch: RolloutBatch, chunk: Chunk) -> Tensor:
    """[rows, n] positions of the columns of a chunk."""
    counted, budgets = batch.prompts.positions(chunk.start, chunk.stop)[: chunk.rows], batch.budgets
    if batch.settings.positions == "rolling" and budgets is not None:
        return counted - budgets.rolled(chunk.segment)
    return counted


def _leading_rows(entry: Boundary, rows: int) -> Boundary:
    """The first rows of a boundary; initial states are shared by all rows and stay as they are."""
    past, states = entry.past, entry.states
    if past is not None and past[0][0].shape[0] > rows:
        past = [(keys[:rows], values[:rows]) for keys, values in past]
    if states is not None and states[0].shape[0] > rows:
        states = [state[:rows] for state in states]
    return Boundary(past=past, states=states)


def _evict(
    rules: WindowRules, batch: RolloutBatch, chunk: Chunk, past: Past, slots: Tensor | None, states: States
) -> tuple[Past, States]:
    """(what stays: prompt and kept thoughts, the states after), per layer; the same states where nothing absorbs."""
    stays, after, width, event = Past(), list[Tensor | None](), batch.prompts.ids.shape[1], chunk.segment - 1
    assert rules.budgets is not None
    for layer, (keys, values) in enumerate(past):
        before = None if states is None else states[layer]
        if not rules.budgets.is_due(layer, event):
            # One initial state serves all rows until a layer absorbs; behind an event they are the rows'.
            stays.append((keys, values))
            after.append(None if before is None else before.expand(chunk.rows, *before.shape[1:]))
            continue
        chosen = slots_of_layer(batch, event, layer, slots)
        where = None
        if rules.reads_positions:
            where = recorded_positions(batch, chunk, layer, chosen)
        kept_keys, kept_values, state = evict_layer(
            rules, layer, event, keys[:, :, width:], values[:, :, width:], chosen, before, where
        )
        stays.append(
            (torch.cat([keys[:, :, :width], kept_keys], dim=2), torch.cat([values[:, :, :width], kept_values], dim=2))
        )
        after.append(state)
    if states is None or rules.absorb is None:
        return stays, states
    return stays, [state for state in after if state is not None]


def _anchor(states: list[Tensor], batch: RolloutBatch, event: int) -> list[Tensor]:
    """Recorded values, recomputed gradients (straight-through), on rows that recorded this eviction."""
    shape, found = states[0].shape[1:], {}
    for row, record in enumerate(batch.rollouts[: states[0].shape[0]]):
        if record.states is None and event < len(record.evictions):
            raise ValueError(
                f"rollout {row} carries no recorded states; replay it with anchored=False, or sample with anchors=True"
            )
        if record.states is None or event >= record.states.shape[0]:
            continue
        if record.states.shape[2:] != shape:
            raise ValueError(
                f"rollout {row} recorded states of shape {tuple(record.states.shape[2:])}, the adapter has "
                f"{tuple(shape)}; replay it with the adapter that sampled it"
            )
        found[row] = record.states[event]
    if not found:
        return states
    # One transfer for all layers: the records of a GPU lie on the host.
    recorded = torch.stack(list(found.values())).to(states[0])
    rows = torch.tensor(list(found), device=recorded.device)
    anchored = []
    for layer, state in enumerate(states):
        value = state.detach().index_copy(0, rows, recorded[:, layer])
        anchored.append(state + (value - state.detach()))
    return anchored
