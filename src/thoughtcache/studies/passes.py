"""Texts passed through a model piece by piece, with what every layer's attention saw and gave: what the probes look at.

The learner's own pieces are run (`learner/chunk.py`), so that evictions, states and attention are those of training.

Axes: B texts, C columns of [prompt | thoughts], n columns of a piece, Q query heads, H key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn

from thoughtcache.cache.evict import split_thoughts
from thoughtcache.cache.head_columns import leaving_columns, with_blank_columns
from thoughtcache.learner.chunk import (
    Boundary,
    batch_chunks,
    chunk_positions,
    recorded_positions,
    recorded_thoughts,
    run_chunk,
    slots_of_layer,
)
from thoughtcache.learner.chunk_plan import Chunk
from thoughtcache.learner.options import CHUNK_TOKENS
from thoughtcache.policy.batch import RolloutBatch, batch_rollouts
from thoughtcache.policy.handle import find_tuner, open_policy
from thoughtcache.policy.limits import check_rollout_positions
from thoughtcache.records import CacheSettings, Rollout
from thoughtcache.sampler.given import given_text
from thoughtcache.state.memory import Memory

Text = tuple[Sequence[int], Sequence[int]]
"""A prompt and thoughts, as token ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaving:
    """What leaves one layer at an eviction.

    Attributes:
        keys: keys as cached.
        values: their values.
        positions: positions of the keys.
        thoughts: which thoughts they are, counted from 0.
        heads: the kv heads that are full; the others have zeros, whose positions and thoughts say nothing. None: all.
    """

    keys: Float[Tensor, "B H E D"]
    values: Float[Tensor, "B H E D"]
    positions: Int[Tensor, "#B #H E"]
    thoughts: Int[Tensor, "#B #H E"]
    heads: tuple[bool, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of all texts.

    Attributes:
        batch: the texts.
        chunk: which piece it is.
        entry: keys, values and states before its eviction.
        leaving: the same behind it; its states are those that the piece read.
        inputs: [B, n, hidden] what went into the attention of every layer.
        outputs: [B, n, hidden] what came out of it, after the projection of the heads.
        queries: [B, Q, n, D] of every layer, rotated.
    """

    batch: RolloutBatch
    chunk: Chunk
    entry: Boundary
    leaving: Boundary
    inputs: list[Tensor]
    outputs: list[Tensor]
    queries: list[Tensor]

    @cached_property
    def slots(self) -> Int[Tensor, "B M H E"] | None:
        """Recorded slots of what left its full layers on entry to this piece, which evicts; None for the oldest."""
        return self.batch.recorded_slots(self.chunk.segment - 1, self.chunk.rows)

    @property
    def positions(self) -> Int[Tensor, "B n"]:
        """Positions of its columns."""
        return chunk_positions(self.batch, self.chunk)

    def evicted(self, layer_index: int, num_evicted: int) -> Leaving | None:
        """What left a layer on entry to this piece, which evicts; None for a layer that is not full yet."""
        assert self.entry.past is not None
        assert self.batch.budgets is not None
        event = self.chunk.segment - 1
        if not self.batch.budgets.is_due(layer_index, event):
            return None
        keys, values = (part[:, :, self.batch.prompts.ids.shape[1] :] for part in self.entry.past[layer_index])
        slots = slots_of_layer(
            self.batch, event, layer_index, None if self.slots is None else self.slots.to(keys.device)
        )
        columns, where = self.batch.budgets.of_heads(layer_index), slots
        if columns is not None:
            keys, values = (with_blank_columns(columns, event, part) for part in (keys, values))
            where = leaving_columns(columns, event, slots, keys.shape[2], keys)
        return Leaving(
            keys=split_thoughts(keys, where, num_evicted)[0],
            values=split_thoughts(values, where, num_evicted)[0],
            positions=recorded_positions(self.batch, self.chunk, layer_index, slots),
            thoughts=recorded_thoughts(self.batch, self.chunk, layer_index, slots),
            heads=None if columns is None else columns.due(event),
        )


class _Tap:
    """Records what goes into and comes out of the attention of every layer, and gives it other inputs if there are any.

    Args:
        layers: decoder layers.
        forced: [B, C, hidden] per layer: inputs instead of the model's own.
    """

    def __init__(self, layers: Any, forced: Sequence[Tensor] | None) -> None:
        self.layers, self.forced = list(layers), forced
        self.start = 0
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.queries: list[Tensor] = []

    def begin(self, start: int) -> None:
        """The coming piece begins with this column."""
        self.start, self.inputs, self.outputs, self.queries = start, [], [], []

    def observe(self, layer_index: int, queries: Tensor) -> None:
        """Told of the queries of one layer."""
        self.queries.append(queries)

    def register(self, stack: ExitStack) -> None:
        """Hook all layers until the stack is closed."""
        for index, layer in enumerate(self.layers):

            def before(module: nn.Module, args: Any, kwargs: dict[str, Any], index: int = index) -> tuple[Any, Any]:
                given = kwargs["hidden_states"]  # decoder layers of transformers name it
                if self.forced is not None:
                    given = self.forced[index][:, self.start : self.start + given.shape[1]]
                self.inputs.append(given)
                return args, {**kwargs, "hidden_states": given}

            def after(module: nn.Module, args: Any, output: Any) -> None:
                self.outputs.append(output[0])

            stack.callback(layer.self_attn.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.self_attn.register_forward_hook(after).remove)


@torch.no_grad()
def pieces_of_texts(
    model: PeftModel,
    texts: Sequence[Rollout],
    *,
    memory: Memory | None = None,
    full_cache: bool = False,
    forced: Sequence[Tensor] | None = None,
) -> Iterator[Piece]:
    """Run texts of equally many thoughts, piece by piece.

    Args:
        model: the adapted model.
        texts: the texts, with their evictions.
        memory: what learns from the tokens that leave, instead of the adapter's own.
        full_cache: run them without evictions.
        forced: [B, C, hidden] per layer, padding of prompts included: every layer's attention gets these inputs.
    """
    policy = open_policy(model)
    batch = batch_rollouts(texts, policy.device)
    if full_cache:
        batch = replace(batch, settings=batch.settings.with_full_cache())
    check_rollout_positions(batch.rollouts, batch.settings, policy.reach)
    layers: Any = policy.backbone.layers
    tap, entry = _Tap(layers, forced), Boundary()
    with ExitStack() as stack:
        tap.register(stack)
        for chunk in batch_chunks(batch, CHUNK_TOKENS):
            tap.begin(chunk.start)
            _, leaving = run_chunk(policy, batch, chunk, entry, _no_scores, anchored=False, memory=memory, observer=tap)
            yield Piece(
                batch=batch,
                chunk=chunk,
                entry=entry,
                leaving=leaving,
                inputs=tap.inputs,
                outputs=tap.outputs,
                queries=tap.queries,
            )
            entry = leaving


def _no_scores(hidden: Tensor, start: int, stop: int, known: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    return ()


def texts_under(texts: Sequence[Text], cache: CacheSettings, *, seed: int = 0) -> list[Rollout]:
    """Texts under a cache that lets the oldest leave, see `with_own_evictions` for others.

    Args:
        texts: prompts and thoughts; all thoughts equally long.
        cache: the cache, resolved.
        seed: seed of eviction policies that draw.

    Raises:
        ValueError: if there are no texts, thoughts differ in length, or nothing is ever evicted.
    """
    if not texts:
        raise ValueError("no texts were given; give at least one pair of a prompt and thoughts")
    lengths = sorted({len(thoughts) for _, thoughts in texts})
    if len(lengths) != 1:
        raise ValueError(
            f"thoughts must be equally long, got {lengths[0]} to {lengths[-1]} tokens; cut the longer ones"
        )
    if cache.window is None:
        raise ValueError("window=None evicts nothing, so that there is nothing to probe; give the adapter a window")
    rollouts = [given_text(*text, cache, seed=seed + row) for row, text in enumerate(texts)]
    if not rollouts[0].evictions:
        raise ValueError(
            f"all {lengths[0]} thoughts stay in window={cache.window}, and nothing is evicted; give longer texts"
        )
    return rollouts


def check_memory(model: PeftModel) -> None:
    """Refuse an adapter whose states no eviction changes.

    Raises:
        ValueError: if there is no memory.
    """
    if not find_tuner(model).memory().state_bytes:
        raise ValueError(
            "no eviction changes the states of this adapter (plain LoRA, absorb=False, or window=None), so that they "
            "carry nothing; probe an adapter that absorbs"
        )
