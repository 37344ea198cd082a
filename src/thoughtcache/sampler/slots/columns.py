"""Where the tokens of every slot stand, in integers: on the host, and as counters on the device.

Layers of one budget (a *group*, `LayerBudgets.distinct`) hold the same numbers of tokens, so that all is kept by group:
one group with even budgets. Axes: S slots, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thoughtcache.cache.budgets import LayerBudgets
from thoughtcache.cache.host_integers import Integers
from thoughtcache.sampler.slots.table import SlotTable

Room = tuple[int, int]
"""Prompt tokens, and thoughts."""
COMPILED_COLUMNS = 64
"""The columns of a slot are a multiple of this with static shapes."""


class SlotColumns:
    """Counts the tokens of every slot and group.

    Args:
        table: knows all that has a row per slot.
        budgets: resident thoughts of every layer; None for the full cache.
        num_layers: decoder layers.
        static_shapes: attend to the whole buffer in every step.

    Attributes:
        group_of: the group of every layer.
        prompts: [S] prompt tokens of each slot, on the host.
        lengths: [S, G] resident tokens of each slot, prompt included; 0 for a free slot; on the host.
        last: [S] newest thoughts of each slot that leave after all others, on the host.
        next: [S, G] where each slot writes next, on the device.
        capacities: columns of a slot, by group.
        visible: columns that the running forward pass attends to, by group.
        uniform: whether all slots write to the same column, by group.
    """

    def __init__(self, table: SlotTable, budgets: LayerBudgets | None, num_layers: int, *, static_shapes: bool) -> None:
        self.budgets, self.static_shapes, self.device = budgets, static_shapes, table.device
        self.group_of = [0 if budgets is None else budgets.group(index) for index in range(num_layers)]
        groups = 1 if budgets is None else len(budgets.distinct)
        self.prompts: Integers = np.zeros(table.num_slots, np.int64)
        self.last: Integers = np.zeros(table.num_slots, np.int64)
        self.lengths: Integers = np.zeros((table.num_slots, groups), np.int64)
        self.next = torch.zeros(table.num_slots, groups, dtype=torch.long, device=table.device)
        self.capacities = [0] * groups
        self.visible = [0] * groups
        self.uniform = [False] * groups
        table.own(self, "prompts", "last", "lengths", "next", initial=0)

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.capacities)

    def needed(self, prompt_tokens: int, num_thoughts: int) -> list[int]:
        """Columns of a slot for a prompt and thoughts, by group."""
        sizes: Sequence[int] = [num_thoughts] if self.budgets is None else self.budgets.distinct
        columns = [prompt_tokens + min(num_thoughts, size) for size in sizes]
        # Few shapes, few graphs: prompts of many lengths share one.
        return [count + (-count % COMPILED_COLUMNS if self.static_shapes else 0) for count in columns]

    def reserve(self, rooms: Sequence[Room]) -> list[int]:
        """Make room for any of these prompts and thoughts in every slot.

        Returns:
            How many columns more every group has than before.
        """
        needed = [max(columns) for columns in zip(*(self.needed(*room) for room in rooms), strict=True)]
        missing = [max(0, wanted - capacity) for wanted, capacity in zip(needed, self.capacities, strict=True)]
        self.capacities = [capacity + more for capacity, more in zip(self.capacities, missing, strict=True)]
        self.visible = [visible + more for visible, more in zip(self.visible, missing, strict=True)]
        return missing

    def prepare_step(self) -> None:
        """Make ready for one token per slot."""
        if self.static_shapes:
            return
        self.visible = [int(count) + 1 for count in self.lengths.max(axis=0)]
        self.uniform = [
            int(count) + 1 == seen for count, seen in zip(self.lengths.min(axis=0), self.visible, strict=True)
        ]

    def mask(self, group: int, dtype: torch.dtype) -> Float[Tensor, "S 1 1 visible"] | None:
        """Additive mask of the step for the layers of a group, or None where every slot sees all visible columns."""
        if self.uniform[group]:
            return None
        visible = self.visible[group]
        hidden = torch.arange(visible, device=self.device) > self.next[:, group].unsqueeze(1)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
        return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None, None]

    def fill(self, slots: Sequence[int], rows: Int[Tensor, " n"], length: int) -> None:
        """A prompt of so many tokens was put into these slots."""
        self.prompts[slots], self.lengths[slots], self.next[rows] = length, length, length

    def leave(self, slots: Integers, rows: Int[Tensor, " n"], groups: Sequence[int], num_evicted: int) -> None:
        """So many thoughts have left the layers of these groups in these slots."""
        for group in groups:
            self.next[rows, group] -= num_evicted
            self.lengths[slots, group] -= num_evicted

    def full(self, num_events: Integers) -> np.typing.NDArray[np.bool_]:
        """[S] slots before an event: heads of the smallest budget are full.

        Args:
            num_events: events of each slot so far; while larger heads of their layers still fill up, these grow on.
        """
        budgets = self.budgets
        if budgets is None:
            return np.zeros(len(self.prompts), np.bool_)
        most: int | Integers = budgets.smallest
        if budgets.heads is not None:
            most = np.minimum(most + num_events * budgets.num_evicted, budgets.distinct[0])
        full: np.typing.NDArray[np.bool_] = self.lengths[:, 0] - self.prompts == most
        return full
