"""The sampler's cache: a fixed number of slots, each with a sequence of its own length, phase and state.

One slot is one row of every layer's buffer, `[prompt | resident thoughts]` from column 0, without padding. Sequences
come and go by themselves. The host knows all lengths (the schedule is a function of integers) and the device keeps
counters of its own that only an arrival, an eviction or an end touches (`columns.py`), so a decode step neither waits
for the device nor sends it anything, and costs the host the same for every number of slots. A layer's buffers are as
long as its own budget.

Where all slots have the same length the layers hand out plain views and need no mask. With `static_shapes` every step
attends to the whole buffer under a mask, so that one compiled graph serves all of them (`sampler/decode_step.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.cache.base import ResidentLayer, StatefulCache, StateReader, States
from thoughtcache.cache.host_integers import Integers, to_device
from thoughtcache.cache.layer_masks import GivenMasks, LayerMasks
from thoughtcache.cache.query_log import QueryLog
from thoughtcache.cache.window_rules import WindowRules
from thoughtcache.records import slot_dtype
from thoughtcache.sampler.slots.blanks import SlotMasks, new_blanks
from thoughtcache.sampler.slots.choice import choose, hear
from thoughtcache.sampler.slots.columns import Room, SlotColumns
from thoughtcache.sampler.slots.move import MoveFn, move_thoughts
from thoughtcache.sampler.slots.slot_eviction import SlotEviction
from thoughtcache.sampler.slots.table import SlotTable
from thoughtcache.sampler.slots.window_block import WindowBlock
from thoughtcache.state.memory import Memory


class _SlotLayer(ResidentLayer):  # type: ignore[no-untyped-call]
    """One layer's buffers [slots, H, capacity, D]; where to write and what to show is the cache's."""

    def __init__(self, cache: SlotCache, group: int) -> None:
        super().__init__()
        self.cache, self.group = cache, group

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        cache, columns = self.cache, self.cache.columns
        visible = columns.visible[self.group]
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            if columns.uniform[self.group]:
                buffer[:, :, visible - 1 : visible] = new
            else:
                buffer[cache.every, :, columns.next[:, self.group]] = new[:, :, 0]
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.columns.visible[self.group], 0

    def get_seq_length(self) -> int:
        return self.cache.columns.visible[self.group] - 1


class SlotCache(StatefulCache):
    """Slots that are filled, decoded one token at a time, evicted from and freed independently.

    Args:
        num_layers: decoder layers.
        table: knows all that has a row per slot.
        room: prompt tokens and thoughts that every slot has room for. `reserve` raises it.
        initial_states: [1, ...] per layer, or None for the identity.
        reader: shows the states to forward passes.
        rules: what bounds every slot.
        static_shapes: attend to the whole buffer in every step.
        log: keeps the last queries of every slot, where the eviction policy wants them.

    Attributes:
        columns: where the tokens of each slot stand.
        blanks: columns that heads do not hold; None where the heads of each layer have the same budget.
        taken: slots that hold a sequence, on the host as the next two.
        num_evictions: eviction events of the sequence in each slot so far.
        seeds: seed of the sequence in each slot, for policies that draw random numbers.
        read_states: what the linears read where it is not the states themselves, made once per eviction; or None.
        positions: [slots] position of the token that is written next, on the device as the next two.
        occupied: [slots] 1 where there is a sequence.
        kept: [slots, H, K] per layer, positions of the thoughts that the last eviction left, which are the first ones
            before there was one; empty where nobody asks for them.
    """

    is_samplers = True

    def __init__(
        self,
        *,
        num_layers: int,
        table: SlotTable,
        room: Room,
        initial_states: States,
        reader: StateReader,
        rules: WindowRules,
        static_shapes: bool = False,
        log: QueryLog | None = None,
    ) -> None:
        num_slots, device = table.num_slots, table.device
        states = _in_every_slot(initial_states, num_slots)
        columns = SlotColumns(table, rules.budgets, num_layers, static_shapes=static_shapes)
        super().__init__([_SlotLayer(self, group) for group in columns.group_of], states, reader)
        self.widest = columns.group_of.index(columns.num_groups - 1)
        columns.reserve([room])
        self.blanks = new_blanks(table, rules.budgets)
        initial_read = reader.of_linears(initial_states)
        self.read_states = None if initial_read is initial_states else _in_every_slot(initial_read, num_slots)
        self.table = table
        self.columns = columns
        self.rules = rules
        self.static_shapes = static_shapes
        self.num_evictions: Integers = np.zeros(num_slots, np.int64)
        self.taken: NDArray[np.bool_] = np.zeros(num_slots, np.bool_)
        self.seeds = [0] * num_slots
        self.positions, self.occupied = (torch.zeros(num_slots, dtype=torch.long, device=device) for _ in range(2))
        self._every = torch.arange(num_slots, device=device)
        self._fix_addresses(
            columns.next, self.positions, self.occupied, self._every, *(states or ()), *(self.read_states or ())
        )
        table.own(self, "num_evictions", "taken", "seeds", "positions", "occupied", initial=0)
        self.kept: list[Any] = [None] * num_layers if rules.numbers_thoughts else []
        table.own(self.kept, *range(len(self.kept)))
        self.log = log
        if log is not None:
            table.own(log, "unheard", initial=0)
            table.own(log.queries, *range(num_layers))
            table.own(log.scores, *range(num_layers), initial=0)
            self._fix_addresses(log.place, *(queries for queries in log.queries if queries is not None))
        for index, layer in enumerate(self.layers):
            table.own(layer, "keys", "values")
            if self.states is not None and initial_states is not None:
                table.own(self.states, index, initial=initial_states[index])
            if self.read_states is not None and initial_read is not None:
                table.own(self.read_states, index, initial=initial_read[index])

    @property
    def physical_length(self) -> int:
        """Columns in front of the token that is processed, in the layers that hold most."""
        return self.columns.visible[-1] - 1

    @property
    def layer_masks(self) -> LayerMasks | None:
        """Additive masks of the step by layer; None where `step_mask` serves all of them."""
        columns = self.columns
        if self.blanks is not None:
            return SlotMasks(columns, self.blanks)
        if columns.num_groups == 1:
            return None
        dtype = self.layers[0].keys.dtype
        masks = [columns.mask(group, dtype) for group in range(columns.num_groups)]
        return GivenMasks(masks=[masks[group] for group in columns.group_of])

    @property
    def linear_states(self) -> States:
        """What the linears read of the slots."""
        return self.reader.of_linears(self.states) if self.read_states is None else self.read_states

    @property
    def num_slots(self) -> int:
        """Sequences at once, free slots included."""
        return self.table.num_slots

    @property
    def every(self) -> Int[Tensor, " slots"]:
        """The numbers 0, 1, 2, ... of the slots, on the device."""
        return self._every[: self.num_slots]

    @property
    def device(self) -> torch.device:
        """The device of all buffers."""
        return self.table.device

    def fill(self, slots: Sequence[int], past: list[tuple[Tensor, Tensor]], seeds: Sequence[int]) -> None:
        """Put one prefilled prompt into free slots, which hold their initial values.

        Args:
            slots: slots to fill.
            past: its keys and values per layer, [H, P, D].
            seeds: seed of the sequence in each slot.
        """
        length = past[0][0].shape[1]
        rows = to_device(np.array(slots), self.device)
        for layer, pair in zip(self.layers, past, strict=True):
            if layer.keys is None:
                heads, _, size = pair[0].shape
                capacity = self.columns.capacities[layer.group]
                layer.keys, layer.values = (t.new_zeros(self.num_slots, heads, capacity, size) for t in pair)
                layer.is_initialized = True
                self._fix_addresses(layer.keys, layer.values)
            layer.keys[rows, :, :length], layer.values[rows, :, :length] = pair
        if self.kept:
            self.number_first_thoughts(rows, length)
        self.columns.fill(slots, rows, length)
        if self.blanks is not None:
            self.blanks.fill(rows, length)
        self.positions[rows], self.occupied[rows], self.taken[slots] = length, 1, True
        for slot, seed in zip(slots, seeds, strict=True):
            self.seeds[slot] = seed

    def number_first_thoughts(self, rows: Int[Tensor, " n"], position: int) -> None:
        """The thoughts that the first eviction finds oldest stand from this position on in these slots."""
        assert self.rules.budgets is not None
        for index, layer in enumerate(self.layers):
            size = self.rules.budgets.size(index) - self.rules.num_evicted
            start = position + self.rules.budgets.first(index) - self.rules.budgets.size(index)
            first = torch.arange(start, start + size, dtype=torch.int32, device=self.device)
            if self.kept[index] is None:
                self.kept[index] = first.new_zeros(self.num_slots, layer.keys.shape[1], size)
                self._fix_addresses(self.kept[index])
            self.kept[index][rows] = first

    def reserve(self, rooms: Sequence[Room]) -> None:
        """Make room for any of these prompts and thoughts in every slot; what is there stays."""
        missing = self.columns.reserve(rooms)
        for layer in self.layers:
            more = missing[layer.group]
            if layer.keys is not None and more:
                layer.keys, layer.values = (pad(buffer, (0, 0, 0, more)) for buffer in (layer.keys, layer.values))
                self._fix_addresses(layer.keys, layer.values)

    def _fix_addresses(self, *buffers: Tensor) -> None:
        """Tell the compiler that these stay where they are: a CUDA graph writes only to what it need not copy."""
        if self.static_shapes:
            for buffer in buffers:
                torch._dynamo.mark_static_address(buffer)

    def prepare_step(self) -> None:
        """Make ready for one token per slot, whose room must exist."""
        self.columns.prepare_step()

    def step_mask(self) -> Float[Tensor, "B 1 1 visible"] | None:
        """Additive mask of the step, or None where every slot sees all visible columns, or layers have masks."""
        if self.columns.num_groups > 1 or self.blanks is not None:
            return None
        return self.columns.mask(0, self.layers[0].keys.dtype)

    def finish_step(self) -> None:
        """Count the token that every slot with a sequence has written."""
        self.columns.lengths += self.taken[:, None]
        self.columns.next += self.occupied.unsqueeze(1)
        self.positions += self.occupied
        if self.log is not None:
            self.log.advance(self.taken)
            full = self.log.full_rows() & self.taken
            if full.any():
                hear(self, self.log, np.flatnonzero(full))

    def due(self) -> Integers:
        """Slots in which layers are full: they evict before their next token."""
        return np.flatnonzero(self.taken & self.columns.full(self.num_evictions))

    def evict(self, slots: Integers, move: MoveFn | None = None) -> list[SlotEviction]:
        """Remove thoughts from due slots and absorb them; slots in which other layers are full are another eviction.

        `move` is another form of `move_thoughts`, such as a compiled one.
        """
        assert self.rules.budgets is not None
        stages = np.minimum(self.num_evictions[slots], self.rules.budgets.num_opening)
        return [self._evict(slots[stages == stage], int(stage), move or move_thoughts) for stage in np.unique(stages)]

    def _evict(self, slots: Integers, stage: int, move: MoveFn) -> SlotEviction:
        """One eviction of slots in which the layers are full that are due at the event `stage`."""
        rules, budgets, columns = self.rules, self.rules.budgets, self.columns
        assert budgets is not None
        padded = self._padded(slots)
        heads = self.layers[0].keys.shape[1]
        windows = [
            WindowBlock(
                padded,
                columns.prompts[padded],
                budgets.columns_before(size, stage),
                shape=(heads, capacity),
                device=self.device,
                static_shapes=self.static_shapes,
            )
            for size, capacity in zip(budgets.distinct, columns.capacities, strict=True)
        ]
        chosen = choose(self, windows, padded, stage) if rules.eviction.chooses else None
        states = move(self, windows, chosen, stage)
        rows = windows[0].rows[: len(slots)]
        groups = [group for index, group in enumerate(columns.group_of) if budgets.sheds(index, stage)]
        columns.leave(slots, rows, sorted(set(groups)), rules.num_evicted)
        if self.blanks is not None:
            self.blanks.leave(rows, stage)
        if rules.roll(stage):
            self.positions[rows] -= rules.roll(stage)
        self.num_evictions[slots] += 1
        left = [slots_of for slots_of in chosen or () if slots_of is not None]
        return SlotEviction(
            slots=slots.tolist(),
            states=None if states is None else [state[: len(slots)] for state in states],
            chosen=torch.stack(left, dim=1)[: len(slots)].to(slot_dtype(budgets.largest)) if left else None,
        )

    def _padded(self, slots: Integers) -> Integers:
        """With static shapes, pad to a power of two by repeating the last slot, so that few shapes need few graphs."""
        if not self.static_shapes or self.num_slots == 1:
            return slots
        size = max(2, 1 << (len(slots) - 1).bit_length())
        return np.pad(slots, (0, size - len(slots)), mode="edge")


def _in_every_slot(states: States, num_slots: int) -> States:
    """A copy of [1, ...] states per slot."""
    return None if states is None else [state.expand(num_slots, *state.shape[1:]).clone() for state in states]


def new_slots(
    tuner: ThoughtModel,
    table: SlotTable,
    memory: Memory,
    rules: WindowRules,
    *,
    room: Room,
    static_shapes: bool = False,
) -> SlotCache:
    """Empty slots, each starting from the active adapter's initial states.

    Args:
        tuner: the tuner of the model.
        table: knows all that has a row per slot.
        memory: memory of the active adapter.
        rules: what bounds every slot.
        room: prompt tokens and thoughts that every slot has room for.
        static_shapes: attend to the whole buffer in every step.
    """
    log = tuner.query_log(rules)
    if log is not None:
        heads, size = tuner.kv_shape
        log.allocate(table.num_slots, (tuner.query_heads, heads, size), tuner.model.dtype, table.device)
    return SlotCache(
        num_layers=tuner.num_layers,
        table=table,
        room=room,
        initial_states=memory.initial_states(),
        reader=memory.reader(),
        rules=rules,
        static_shapes=static_shapes,
        log=log,
    )
