"""The sampler's cache: a fixed number of slots, each with a sequence of its own length, phase and state.

One slot is one row of every layer's buffer, `[prompt | resident thoughts]` from column 0, without padding. Sequences
come and go by themselves; the host knows all lengths (the schedule is a function of integers), so nothing here waits
for the device. Where all slots have the same length the layers hand out plain views and need no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thoughtcache.cache.bounded_cache import AbsorbFn, StatefulCache, States, _Layer
from thoughtcache.cache.eviction import EvictionPolicy
from thoughtcache.cache.rotation import Rotations
from thoughtcache.cache.split import evict_block


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotEviction:
    """One eviction of some slots.

    Attributes:
        slots: which ones, ascending.
        states: [n, L, G, R] their new states; None where nothing absorbs.
        chosen: [n, L, H, E] resident thoughts that left; None means the oldest.
    """

    slots: list[int]
    states: Float[Tensor, "n L G R"] | None
    chosen: Int[Tensor, "n L H E"] | None


class _SlotLayer(_Layer):  # type: ignore[no-untyped-call]
    """One layer's buffers [slots, H, capacity, D]; where to write and what to show is the cache's."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        cache, visible = self.cache, self.cache.visible
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            if cache.uniform:
                buffer[:, :, visible - 1 : visible] = new
            else:
                buffer[cache.every, :, cache.columns] = new[:, :, 0]
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.visible, 0

    def get_seq_length(self) -> int:
        return self.cache.visible - 1


class _Window:
    """The thoughts of some slots as one block, by the cheapest indexing that reaches them.

    Args:
        cache: with full windows in these slots.
        slots: ascending.
        size: resident thoughts of each.
    """

    def __init__(self, cache: SlotCache, slots: list[int], size: int) -> None:
        starts = [cache.prompts[slot] for slot in slots]
        self.rows = cache.index(slots)
        self.every = len(slots) == cache.num_slots
        self.first = starts[0] if min(starts) == max(starts) else None
        self.size = size
        self.columns = cache.index(starts).unsqueeze(1) + torch.arange(size, device=cache.device)

    def read(self, buffer: Float[Tensor, "S H C D"]) -> Float[Tensor, "n H W D"]:
        """The block; a view where it can be one."""
        if self.first is None:
            return buffer[self.rows[:, None], :, self.columns].transpose(1, 2)
        block = buffer[:, :, self.first : self.first + self.size]
        return block if self.every else block[self.rows]

    def write(self, buffer: Float[Tensor, "S H C D"], kept: Float[Tensor, "n H K D"]) -> None:
        """Put what stays at the front."""
        count = kept.shape[2]
        if self.first is None:
            buffer[self.rows[:, None], :, self.columns[:, :count]] = kept.transpose(1, 2)
        elif self.every:
            buffer[:, :, self.first : self.first + count] = kept.clone()
        else:
            buffer[self.rows, :, self.first : self.first + count] = kept


class SlotCache(StatefulCache):
    """Slots that are filled, decoded one token at a time, evicted from and freed independently.

    Args:
        num_layers: decoder layers.
        num_slots: sequences at once.
        capacity: longest prompt plus the most resident thoughts.
        initial_states: [1, G, R] per layer, or None for the identity.
        window: resident thoughts of a slot; None keeps everything.
        num_evicted: thoughts that leave at once; None with a full cache.
        policy: chooses which thoughts leave.
        absorb: (states, evicted keys, evicted values) -> states, per layer; None where the state never changes.
        device: of all buffers.
        rotations: of every layer with rolling positions; None with absolute ones.

    Attributes:
        prompts: prompt tokens of each slot.
        seeds: of the sequence in each slot, for policies that draw random numbers.
        num_evictions: evictions of the sequence in each slot so far.
        lengths: resident tokens of each slot, prompt included; 0 for a free slot.
        visible: columns that the running forward pass attends to.
        uniform: whether all slots write to the same column.
        columns: [slots] where each slot writes.
        every: [slots] 0, 1, 2, ...
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        capacity: int,
        initial_states: States,
        window: int | None,
        num_evicted: int | None,
        policy: EvictionPolicy,
        absorb: AbsorbFn | None,
        device: torch.device,
        rotations: Rotations | None = None,
    ) -> None:
        states = None if initial_states is None else [s.expand(num_slots, -1, -1).clone() for s in initial_states]
        super().__init__([_SlotLayer(self) for _ in range(num_layers)], states)
        self.initial_states = initial_states
        self.capacity = capacity
        self.window = window
        self.num_evicted = num_evicted
        self.policy = policy
        self.absorb = absorb
        self.device = device
        self.rotations = rotations
        self.prompts = [0] * num_slots
        self.lengths = [0] * num_slots
        self.seeds = [0] * num_slots
        self.num_evictions = [0] * num_slots
        self.visible = 0
        self.uniform = True
        self.columns = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.every = torch.arange(num_slots, device=device)

    @property
    def physical_length(self) -> int:
        """Columns in front of the token that is processed."""
        return self.visible - 1

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """As `physical_length`."""
        return self.visible - 1

    @property
    def num_slots(self) -> int:
        """Sequences at once, free slots included."""
        return len(self.lengths)

    def fill(
        self, slots: Sequence[int], past: list[tuple[Tensor, Tensor]], lengths: Sequence[int], seeds: Sequence[int]
    ) -> None:
        """Put prefilled prompts into free slots.

        Args:
            slots: where to.
            past: keys and values per layer, [n, H, width, D], prompts on the right.
            lengths: prompt tokens of each row.
            seeds: of each row.
        """
        rows = self.index(slots)
        width = past[0][0].shape[2]
        longest = max(lengths)
        aligned = min(lengths) == width
        columns = torch.arange(longest, device=self.device) + (width - self.index(lengths)).unsqueeze(1)
        for layer, pair in zip(self.layers, past, strict=True):
            if layer.keys is None:
                _, heads, _, size = pair[0].shape
                shape = (self.num_slots, heads, self.capacity, size)
                layer.keys, layer.values = (tensor.new_zeros(shape) for tensor in pair)
                layer.is_initialized = True
            for buffer, tensor in zip((layer.keys, layer.values), pair, strict=True):
                if not aligned:
                    index = columns.clamp_max(width - 1)[:, None, :, None].expand(
                        -1, tensor.shape[1], -1, tensor.shape[3]
                    )
                    tensor = tensor.gather(2, index)
                buffer[rows, :, :longest] = tensor
        if self.states is not None and self.initial_states is not None:
            for state, initial in zip(self.states, self.initial_states, strict=True):
                state[rows] = initial
        for slot, length, seed in zip(slots, lengths, seeds, strict=True):
            self.prompts[slot] = self.lengths[slot] = length
            self.seeds[slot] = seed
            self.num_evictions[slot] = 0

    def free(self, slot: int) -> None:
        """The slot's sequence is over."""
        self.prompts[slot] = self.lengths[slot] = 0

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all other slots, so that a step costs what is left."""
        rows = self.index(slots)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if self.states is not None:
            self.states = [state[rows] for state in self.states]
        self.prompts = [self.prompts[slot] for slot in slots]
        self.lengths = [self.lengths[slot] for slot in slots]
        self.seeds = [self.seeds[slot] for slot in slots]
        self.num_evictions = [self.num_evictions[slot] for slot in slots]
        self.every = torch.arange(len(slots), device=self.device)

    def prepare_step(self) -> Float[Tensor, "B 1 1 visible"] | None:
        """Make ready for one token per slot, whose room must exist.

        Returns:
            Additive mask, or None where every slot sees all visible columns.
        """
        self.visible = max(self.lengths) + 1
        self.uniform = min(self.lengths) + 1 == self.visible
        if self.uniform:
            return None
        self.columns = self.index(self.lengths)
        hidden = torch.arange(self.visible, device=self.device) > self.columns.unsqueeze(1)
        dtype = self.layers[0].keys.dtype
        mask = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]

    def finish_step(self, active: Sequence[int]) -> None:
        """Count the token that every active slot has written."""
        for slot in active:
            self.lengths[slot] += 1

    def due(self, active: Sequence[int]) -> list[int]:
        """Slots whose window is full: they evict before their next token."""
        if self.window is None:
            return []
        return [slot for slot in active if self.lengths[slot] - self.prompts[slot] == self.window]

    def evict(self, slots: list[int]) -> SlotEviction:
        """Remove `num_evicted` thoughts from these slots and absorb them."""
        assert self.window is not None
        assert self.num_evicted is not None
        window = _Window(self, slots, self.window)
        evicted: list[tuple[Tensor, Tensor]] = []
        chosen: list[Tensor] = []
        events = [(self.seeds[slot], self.num_evictions[slot]) for slot in slots]
        for index, layer in enumerate(self.layers):
            keys, values = window.read(layer.keys), window.read(layer.values)
            selected = self.policy.select(index, keys, values, self.num_evicted, events)
            rotation = None if self.rotations is None else self.rotations[index]
            out, kept = evict_block(keys, values, selected, self.num_evicted, rotation)
            evicted.append((out[0].clone(), out[1].clone()))
            window.write(layer.keys, kept[0])
            window.write(layer.values, kept[1])
            if selected is not None:
                chosen.append(selected)
        for slot in slots:
            self.lengths[slot] -= self.num_evicted
            self.num_evictions[slot] += 1
        return SlotEviction(
            slots=slots,
            states=self._absorb(window.rows, evicted),
            chosen=torch.stack(chosen, dim=1) if chosen else None,
        )

    def _absorb(self, rows: Tensor, evicted: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        if self.absorb is None or self.states is None:
            return None
        updated = self.absorb([s[rows] for s in self.states], [k for k, _ in evicted], [v for _, v in evicted])
        for state, new in zip(self.states, updated, strict=True):
            state[rows] = new
        return torch.stack(updated, dim=1)

    def index(self, values: Sequence[int]) -> Int[Tensor, " n"]:
        """Host integers on the device; on CUDA the copy does not block."""
        index = torch.tensor(values, dtype=torch.long)
        if self.device.type == "cuda":
            return index.pin_memory().to(self.device, non_blocking=True)
        return index.to(self.device)
