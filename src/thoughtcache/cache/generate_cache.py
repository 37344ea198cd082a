"""The cache of `generate`: preallocated, written in place; it evicts and absorbs by itself before a forward.

Our own sampler's is `sampler/slots/slot_cache.py`. Not covered: static shapes for CUDA graphs, paged storage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thoughtcache.cache.base import ResidentLayer, StatefulCache, StateReader, States
from thoughtcache.cache.choice import choose_layer
from thoughtcache.cache.evict import evict_layer, first_positions, leave_with_gaps, leaving_positions
from thoughtcache.cache.head_columns import leaving_columns
from thoughtcache.cache.layer_masks import LayerMasks, WithoutOldest
from thoughtcache.cache.query_log import QueryLog, Sight
from thoughtcache.cache.window_rules import WindowRules


class _PreallocatedLayer(ResidentLayer):  # type: ignore[no-untyped-call]
    """Keys and values in one buffer that never grows once the window is full."""

    def __init__(self, capacity_after_prompt: int) -> None:
        super().__init__()
        self.capacity_after_prompt = capacity_after_prompt

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        added = key_states.shape[2]
        if self.keys is None:
            batch, heads, prompt, size = key_states.shape
            shape = (batch, heads, prompt + self.capacity_after_prompt, size)
            self.keys = key_states.new_empty(shape)
            self.values = value_states.new_empty(shape)
            self.is_initialized = True
        end = self.length + added
        if end > self.keys.shape[2]:
            raise ValueError(
                f"the cache has room for {self.keys.shape[2]} tokens, {end} were asked for; "
                "raise max_new_tokens or evict before the forward pass"
            )
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length, self.seen = end, self.seen + added
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may come several times."""
        if self.keys is not None:
            self.keys, self.values = (buffer.index_select(0, rows) for buffer in (self.keys, self.values))

    def clear(self) -> None:
        """Forget everything, the size of the batch included."""
        self.keys = self.values = None
        self.is_initialized = False
        self.seen = self.length = 0

    def keep(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Put the thoughts that stay behind the prompt, which ends at `start`; they may be views of where they go."""
        stop = start + keys.shape[2]
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = keys.clone(), values.clone()
        self.length = stop


class BoundedCache(StatefulCache):
    """Prompt plus the thoughts of each layer's budget, preallocated; evicts and absorbs by itself before a forward.

    Args:
        num_layers: decoder layers.
        states: initial thought states, or None for the identity.
        reader: shows the states to forward passes.
        rules: what bounds the cache.
        max_new_tokens: bound on the thoughts, which sizes the buffer of a full cache.
        seed: seed for eviction policies that draw random numbers.
        log: keeps the last queries, where the eviction policy wants them.
        owner: name of the adapter whose states it holds.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        states: States,
        reader: StateReader,
        rules: WindowRules,
        max_new_tokens: int,
        seed: int = 0,
        log: QueryLog | None = None,
        owner: str | None = None,
    ) -> None:
        budgets = rules.budgets
        sizes = [max_new_tokens if budgets is None else budgets.size(index) for index in range(num_layers)]
        super().__init__([_PreallocatedLayer(min(size, max_new_tokens)) for size in sizes], states, reader)
        self.widest = sizes.index(max(sizes))
        self.initial_states = None if states is None else list(states)
        self.rules = rules
        self.seed = seed
        self.log = log
        self.owner = owner
        self.hidden_prompt: Tensor | None = None
        self.first_positions = torch.zeros(1, dtype=torch.long)
        self.kept: list[Tensor | None] = [None] * num_layers
        self.prompt_length = 0
        self.num_evictions = 0
        self._num_observed: int | None = None
        self._read: tuple[States, States] = (None, None)

    @property
    def is_initial(self) -> bool:
        """Whether nothing was evicted so far."""
        return self.num_evictions == 0

    @property
    def positions_behind(self) -> int:
        """Number by which rolling positions lag behind the count of all tokens."""
        budgets = self.rules.budgets
        return 0 if self.rules.rotations is None or budgets is None else budgets.rolled(self.num_evictions)

    @property
    def layer_masks(self) -> LayerMasks | None:
        """The mask of the layer that holds most, without what others do not hold; None with even budgets."""
        budgets = self.rules.budgets
        if budgets is None or budgets.sizes is None:
            return None
        return WithoutOldest(num_prompt_columns=self.prompt_length, blank=budgets.blank(self.num_evictions))

    @property
    def linear_states(self) -> States:
        """What the linears read, made once per eviction; in every pass where it has a gradient."""
        if self.states is None or torch.is_grad_enabled():
            return super().linear_states
        known, read = self._read
        if known is None or any(one is not other for one, other in zip(known, self.states, strict=True)):
            read = super().linear_states
            self._read = (list(self.states), read)
        return read

    @property
    def num_thoughts(self) -> int:
        """Thought tokens so far, those that left included."""
        return int(self.layers[0].seen) - self.prompt_length

    @property
    def observer(self) -> BoundedCache | None:
        """Itself, if the coming forward pass is one of a thought and the eviction policy wants its queries."""
        return None if self._num_observed is None else self

    def prepare_forward(self, num_new_tokens: int) -> None:
        """Evict and absorb when `num_new_tokens` thoughts would not fit.

        Raises:
            ValueError: if several thoughts come at once to a full window, or to a policy that looks at queries; the
                policy is defined token by token.
            RuntimeError: if a forward pass did not show the queries that the eviction policy looks at.
        """
        if self.physical_length == 0:
            self.prompt_length = num_new_tokens
            return
        budgets, window, full = self.rules.budgets, None, False
        if budgets is not None:
            window, next_event = budgets.window, budgets.smallest + self.num_evictions * budgets.num_evicted
            full = self.num_thoughts + num_new_tokens > next_event
        if num_new_tokens > 1 and (full or self.log is not None):
            raise ValueError(
                f"{num_new_tokens} thought tokens arrived at once at a window of {window}; "
                "feed them one at a time (no prefill chunks, no assistant model)"
            )
        if self.log is not None:
            self._count_query(self.log)
        if full:
            self._evict()

    def note_positions(self, position_ids: Tensor) -> None:
        """The first thought of every row stands behind its prompt."""
        if self.physical_length == 0:
            self.first_positions = position_ids[:, -1] + 1

    def observe(self, layer_index: int, queries: Tensor) -> None:
        """Told of the query [B, Q, 1, D] of a thought in one layer."""
        assert self.log is not None
        assert self._num_observed is not None
        if self.log.queries[layer_index] is None:
            batch, query_heads, _, size = queries.shape
            shape = query_heads, self.layers[0].keys.shape[1], size
            self.log.allocate(batch, shape, queries.dtype, queries.device)
        self.log.observe(layer_index, queries)
        self._num_observed += 1

    def _count_query(self, log: QueryLog) -> None:
        """Count the query of the thought before; look at all of them where the log is full of new ones."""
        if self._num_observed is not None:
            if self._num_observed != len(self.layers):
                raise RuntimeError(
                    f"the eviction policy {self.rules.eviction.name!r} looks at queries, and the last forward pass "
                    f"showed those of {self._num_observed} of {len(self.layers)} layers; call the adapted model, and "
                    "train with it in no other thread meanwhile"
                )
            log.advance(True)
            if log.full_rows().any():
                self._hear(log)
        self._num_observed = 0

    def _sight(self, log: QueryLog, layer_index: int) -> Sight:
        """The columns of a layer that the last queries saw."""
        layer, hidden = self.layers[layer_index], self.hidden_prompt
        length, keys = layer.length, layer.keys
        if hidden is not None:
            hidden = torch.nn.functional.pad(hidden, (0, length - self.prompt_length))
        lengths, starts = (
            torch.full(keys.shape[:1], value, device=keys.device) for value in (length, self.prompt_length)
        )
        return log.sight(
            slice(None),
            log.unheard.tolist(),
            length,
            lengths,
            starts,
            hidden,
            num_thoughts=log.windows[layer_index],
        )

    def _sights(self, log: QueryLog) -> list[Sight]:
        """The same for every layer; layers of one budget share it."""
        by_size = {size: self._sight(log, log.windows.index(size)) for size in dict.fromkeys(log.windows)}
        return [by_size[size] for size in log.windows]

    def _hear(self, log: QueryLog) -> None:
        """Add the new queries to the running scores."""
        sights = self._sights(log)
        for index, layer in enumerate(self.layers):
            for sight in self._by_head(index, sights[index]):
                log.hear(index, sight, layer.keys[:, :, : layer.length])
        log.unheard[:] = 0

    def _by_head(self, layer_index: int, sight: Sight) -> list[Sight]:
        """What the heads of one layer saw: all alike, or those of one budget after another."""
        columns = None if self.rules.budgets is None else self.rules.budgets.of_heads(layer_index)
        if columns is None:
            return [sight]
        blank = columns.blank(self.num_evictions)
        return [sight.of_heads(heads, size, blank[heads[0]]) for size, heads in columns.groups]

    def _evict(self) -> None:
        """Remove thoughts from every layer that is full and absorb them."""
        rules, start, log, event = self.rules, self.prompt_length, self.log, self.num_evictions
        assert rules.budgets is not None
        if log is not None and log.accumulator is not None:
            self._hear(log)
        sights = None if log is None else self._sights(log)
        following = self.first_positions + (self.num_thoughts - self.positions_behind)
        for index, layer in enumerate(self.layers):
            if not rules.budgets.is_due(index, event):
                continue
            columns = layer.keys[:, :, : layer.length]
            keys, values = columns[:, :, start:], layer.values[:, :, start : layer.length]
            events = [(self.seed, event)] * keys.shape[0]
            seen = None if log is None or sights is None else (log, sights[index], columns)
            slots = choose_layer(rules, index, keys, values, events, event, seen)
            state = None if self.states is None else self.states[index]
            positions = self._leaving(index, slots, following)
            kept_keys, kept_values, state = evict_layer(rules, index, event, keys, values, slots, state, positions)
            layer.keep(start, kept_keys, kept_values)
            if self.states is not None and state is not None:
                self.states[index] = state
        self.num_evictions += 1

    def _leaving(self, layer_index: int, slots: Tensor | None, following: Tensor) -> Tensor | None:
        """[B or 1, H or 1, E] positions of what leaves a layer; `following` is that of the next token."""
        rules = self.rules
        if not rules.reads_positions:
            return None
        assert rules.budgets is not None
        if slots is None or not rules.numbers_thoughts:
            return leaving_positions(slots, first_positions(rules.budgets, layer_index, following), rules.num_evicted)
        size, columns = rules.budgets.size(layer_index), rules.budgets.of_heads(layer_index)
        if columns is not None:
            slots = leaving_columns(columns, self.num_evictions, slots, size, slots)
        following, kept = following.to(slots.device), self.kept[layer_index]
        if kept is None:
            places = torch.arange(size - rules.num_evicted, device=slots.device)
            kept = ((following - size)[:, None, None] + places).expand(*slots.shape[:2], -1)
        gone, self.kept[layer_index] = leave_with_gaps(kept, following, slots)
        return gone

    def compact_mask(self, mask: Tensor, num_new_tokens: int) -> Tensor:
        """Drop the columns of evicted tokens from a 2D mask over all tokens seen; keep physical ones."""
        physical = self.physical_length + num_new_tokens
        if self.log is not None and self.physical_length == 0:
            self.hidden_prompt = mask[:, :num_new_tokens] == 0
        if mask.shape[1] == physical:
            return mask
        return torch.cat([mask[:, : self.prompt_length], mask[:, mask.shape[1] - physical + self.prompt_length :]], 1)

    def reset(self) -> None:
        """Make this a new cache, with its initial states."""
        for layer in self.layers:
            layer.clear()
        # `states` itself may be bound to nobody by now, so it is replaced and not written to.
        self.states = None if self.initial_states is None else list(self.initial_states)
        self.prompt_length = self.num_evictions = 0
        self.hidden_prompt = self._num_observed = None
        self.kept = [None] * len(self.kept)
        if self.log is not None:
            self.log.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows `beam_idx` [B] of keys, values and states, as `batch_select_indices`."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of keys, values and states, in this order; a row may come several times."""
        keys = self.layers[0].keys
        if keys is None:
            return
        rows = torch.arange(keys.shape[0], device=keys.device)[indices.to(keys.device)]
        for layer in self.layers:
            layer.select_rows(rows)
        if self.log is not None:
            self.log.select_rows(rows)
        if self.hidden_prompt is not None:
            self.hidden_prompt = self.hidden_prompt[rows]
        self.kept = [None if kept is None else kept[rows] for kept in self.kept]
        if self.first_positions.shape[0] > 1:
            # Positions of one row are those of all rows.
            self.first_positions = self.first_positions[rows]
        if self.states is not None and keys.shape[0] > 1:
            # A state of one row is that of all rows.
            self.states = [state if state.shape[0] == 1 else state[rows.to(state.device)] for state in self.states]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one copy behind the other."""
        keys = self.layers[0].keys
        if keys is not None:
            self.batch_select_indices(torch.arange(keys.shape[0]).repeat_interleave(repeats))
