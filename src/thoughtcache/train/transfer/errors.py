"""How far the attention output of a layer under the window is from that with the full cache, without a memory and with.

Axes: B rows, H key-value heads, Q query heads, P prompt columns, T thoughts, n tokens of a segment, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from thoughtcache.cache.base import AttentionRead, StateReader
from thoughtcache.cache.evict import evict_layer
from thoughtcache.cache.head_columns import hidden_columns
from thoughtcache.cache.layer_masks import hide
from thoughtcache.cache.window_rules import WindowRules
from thoughtcache.learner.chunk import chunk_positions, recorded_positions, recorded_slots, slots_of_layer
from thoughtcache.learner.chunk_plan import Chunk, plan_chunks
from thoughtcache.policy.batch import RolloutBatch
from thoughtcache.state.attention.window_share import attention_with_share

OutputPair = tuple[Tensor, Tensor]
"""The output [B, n, Q, D] under the window alone, and with what the memory adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """The thoughts between two evictions.

    Attributes:
        chunk: their columns, and the rows that are not over.
        slots: [rows, M, H, E] thoughts that leave the layers that are full before it; None for the oldest.
        positions: [rows, n] positions of its thoughts.
    """

    chunk: Chunk
    slots: Tensor | None
    positions: Tensor


@dataclass(frozen=True, kw_only=True)
class BoundedPass:
    """What bounds the attention of a batch, for all layers.

    Attributes:
        batch: the texts, longest first, with their evictions.
        rules: the rules of the cache, which absorb under the weights of the moment.
        reader: shows states to attention.
        initial: [1, ...] per layer, the states before any eviction.
        modules: attention modules, one per layer.
    """

    batch: RolloutBatch
    rules: WindowRules
    reader: StateReader
    initial: list[Tensor]
    modules: list[nn.Module]

    @cached_property
    def segments(self) -> list[Segment]:
        """The segments after the first eviction, which are the same for all layers."""
        batch, cache = self.batch, self.batch.settings.cache
        width = batch.prompts.ids.shape[1]
        _, *later = plan_chunks(batch.lengths, width, cache.smallest_budget, cache.num_evicted, None)
        return [
            Segment(
                chunk=chunk,
                slots=recorded_slots(batch, chunk.segment - 1, chunk.rows, batch.token_ids.device),
                positions=chunk_positions(batch, chunk),
            )
            for chunk in later
        ]

    def visible(self, rows: int, new: int, columns: int) -> Bool[Tensor, "B 1 n m"]:
        """Which of [prompt | resident and new thoughts] the new ones see; the same for layers of one budget."""
        size = rows, new, columns
        if size not in self._masks:
            self._masks[size] = _visible(self.batch, *size)
        return self._masks[size]

    @cached_property
    def _masks(self) -> dict[tuple[int, int, int], Tensor]:
        return {}


class LayerErrors(AttentionRead):
    """Rides on a forward pass of the base with its full cache, and leaves its outputs as they are.

    Args:
        bounded: what bounds the attention beside it.
        cache: the cache of the pass, which holds keys and values when attention runs.

    Attributes:
        left: per layer, squared error of the output projection of the window with the memory; differentiable.
        lost: per layer, the same of the window alone.
    """

    def __init__(self, bounded: BoundedPass, cache: Any) -> None:
        self.bounded, self.cache = bounded, cache
        self.left: list[Tensor] = []
        self.lost: list[Tensor] = []

    def __call__(self, layer_index: int, queries: Tensor, output: Tensor, window: Tensor | None = None) -> Tensor:
        """The output as it is; see `AttentionRead`."""
        held = self.cache.layers[layer_index]
        with torch.enable_grad():
            left, lost = layer_error(self.bounded, layer_index, queries, held.keys, held.values, output)
        self.left.append(left)
        self.lost.append(lost)
        return output


def layer_error(
    bounded: BoundedPass,
    layer_index: int,
    queries: Float[Tensor, "B Q PT D"],
    keys: Float[Tensor, "B H PT D"],
    values: Float[Tensor, "B H PT D"],
    output: Float[Tensor, "B PT Q D"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Squared errors of one layer, summed over the thoughts after the first eviction, without padding.

    Args:
        bounded: what bounds the attention.
        layer_index: the layer.
        queries: queries of prompts and thoughts, at absolute positions.
        keys: their keys.
        values: their values.
        output: output of attention with the full cache.

    Returns:
        The error of the window with the memory, and of the window alone, both behind the output projection.
    """
    module: Any = bounded.modules[layer_index]
    predicts = bounded.batch.mask[:, 1:]  # the last thought of a text is never processed
    left, lost = [], []
    width = bounded.batch.prompts.ids.shape[1]
    for chunk, (alone, remembering) in bounded_outputs(bounded, layer_index, queries, keys, values):
        counted = predicts[: chunk.rows, chunk.start - width : chunk.stop - width].unsqueeze(-1)
        with torch.no_grad():
            wanted = _precise(module.o_proj(output[: chunk.rows, chunk.start : chunk.stop].flatten(2)))
            lost.append(((_precise(module.o_proj(alone.flatten(2))) - wanted) * counted).square().sum())
        found = _precise(module.o_proj(remembering.to(output.dtype).flatten(2)))
        left.append(((found - wanted) * counted).square().sum())
    return torch.stack(left).sum(), torch.stack(lost).sum()


def _precise(output: Tensor) -> Tensor:
    """In at least fp32."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def bounded_outputs(
    bounded: BoundedPass,
    layer_index: int,
    queries: Float[Tensor, "B Q PT D"],
    keys: Float[Tensor, "B H PT D"],
    values: Float[Tensor, "B H PT D"],
) -> list[tuple[Chunk, OutputPair]]:
    """Outputs of one layer in every segment after the first eviction, on the rows that are not over.

    Args:
        bounded: what bounds the attention.
        layer_index: the layer.
        queries: as `layer_error`.
        keys: as `layer_error`.
        values: as `layer_error`.
    """
    batch, rules = bounded.batch, bounded.rules
    width, rotation = batch.prompts.ids.shape[1], rules.rotation(layer_index)
    state = bounded.initial[layer_index]
    start = bounded.segments[0].chunk.start
    kept = keys[:, :, width:start], values[:, :, width:start]
    found = []
    assert rules.budgets is not None
    for segment in bounded.segments:
        chunk = segment.chunk
        rows, new, event = chunk.rows, slice(chunk.start, chunk.stop), chunk.segment - 1
        stays_keys, stays_values = kept[0][:rows], kept[1][:rows]
        if rules.budgets.is_due(layer_index, event):
            slots = slots_of_layer(batch, event, layer_index, segment.slots)
            where = None
            if rules.reads_positions:
                where = recorded_positions(batch, chunk, layer_index, slots)
            stays_keys, stays_values, after = evict_layer(
                rules,
                layer_index,
                event,
                stays_keys,
                stays_values,
                slots,
                state[:rows],  # one initial state serves all rows
                where,
            )
            assert after is not None
            state = after
        with torch.no_grad():
            query, key, value = queries[:rows, :, new], keys[:rows, :, new], values[:rows, :, new]
            if rotation is not None:
                gone = rules.budgets.rolled(chunk.segment)
                query, key = rotation.shift(query, -gone), rotation.shift(key, -gone)
            kept = torch.cat([stays_keys, key], dim=2), torch.cat([stays_values, value], dim=2)
            seen = (
                torch.cat([keys[:rows, :, :width], kept[0]], dim=2),
                torch.cat([values[:rows, :, :width], kept[1]], dim=2),
            )
        states = [state] * len(bounded.initial)  # the reader finds it in the place of this layer
        read = bounded.reader.of_attention(states, segment.positions)
        assert read is not None
        module: Any = bounded.modules[layer_index]
        visible = bounded.visible(rows, chunk.columns, seen[0].shape[2])
        columns = rules.budgets.of_heads(layer_index)
        if columns is not None:
            blank = torch.tensor([columns.blank(chunk.segment)], device=visible.device)
            first = torch.tensor([width], device=visible.device)
            visible = hide(visible, hidden_columns(blank, first, visible.shape[-1], queries.shape[1]))
        with torch.no_grad():
            alone, _ = _attention(module, query, *seen, visible, scaling=module.scaling)
            if read.wants == "share":
                bare, share, _ = attention_with_share(_attention, module, query, *seen, visible, scaling=module.scaling)
            else:
                bare, share = alone, None
        found.append((chunk, (alone, read(layer_index, query, bare, share))))
    return found


def _visible(batch: RolloutBatch, rows: int, new: int, columns: int) -> Bool[Tensor, "B 1 n m"]:
    """Which of [prompt | resident and new thoughts] the new ones see: no padding, nothing later."""
    order = torch.arange(columns, device=batch.prompts.ids.device)
    causal = order <= order[columns - new :, None]
    prompt = batch.prompts.mask[:rows]
    real = torch.cat([prompt, prompt.new_ones(rows, columns - prompt.shape[1])], dim=1)
    return causal & real[:, None, None, :]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float
) -> tuple[Tensor, None]:
    """Attention [B, n, Q, D] under a mask."""
    output, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
    return output, None
