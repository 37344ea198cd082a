"""Blank columns of the kv heads of every slot, where budgets differ by head (`cache/budgets/heads.py`).

They are counted on the device, once for all layers with the same budgets. A slot's blank columns stand behind its
prompt and change at evictions alone. Axes: S slots, U different layers, H kv heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thoughtcache.cache.budgets.heads import HeadColumns
from thoughtcache.cache.head_columns import hidden_columns
from thoughtcache.cache.layer_masks import LayerMasks, hide
from thoughtcache.sampler.slots.columns import SlotColumns
from thoughtcache.sampler.slots.table import SlotTable

if TYPE_CHECKING:
    from thoughtcache.cache.budgets import LayerBudgets


class SlotBlanks:
    """Counts the blank columns of every slot.

    Args:
        table: knows all that has a row per slot.
        columns: the heads of every layer.

    Attributes:
        counts: [S, U, H] blank columns of each head.
        starts: [S] prompt tokens of each slot, on the device.
    """

    def __init__(self, table: SlotTable, columns: Sequence[HeadColumns]) -> None:
        self.different = list(dict.fromkeys(columns))
        self.place_of = [self.different.index(one) for one in columns]
        shape = table.num_slots, len(self.different), len(columns[0].sizes)
        self.counts = torch.zeros(shape, dtype=torch.long, device=table.device)
        self.starts = torch.zeros(table.num_slots, dtype=torch.long, device=table.device)
        table.own(self, "counts", "starts", initial=0)

    def of_layer(self, layer_index: int) -> Int[Tensor, "S H"]:
        """The blank columns of one layer."""
        return self.counts[:, self.place_of[layer_index]]

    def are_alike(self, layer_index: int) -> bool:
        """Whether the heads of a layer hold equally many thoughts, so that none has blank columns."""
        return len(set(self.different[self.place_of[layer_index]].sizes)) == 1

    def fill(self, rows: Int[Tensor, " n"], length: int) -> None:
        """A prompt of so many tokens was put into these slots."""
        self.starts[rows] = length

    def leave(self, rows: Int[Tensor, " n"], event: int) -> None:
        """These slots have had an event; any one from `LayerBudgets.num_opening` on says the same."""
        after = [columns.blank(event + 1) for columns in self.different]
        self.counts[rows] = torch.tensor(after, device=rows.device)


class SlotMasks(LayerMasks):
    """Masks of one decode step, made layer by layer when they are asked for.

    Args:
        columns: where the tokens of every slot stand.
        blanks: what heads do not hold.
    """

    def __init__(self, columns: SlotColumns, blanks: SlotBlanks) -> None:
        self.columns, self.blanks = columns, blanks
        self._of_group: dict[int, Tensor | None] = {}

    def of_layer(
        self, layer_index: int, mask: Tensor | None, query: Tensor, key: Tensor
    ) -> Float[Tensor, "S _ 1 C"] | None:
        """The mask of a layer, whatever transformers has made; None where every slot sees everything."""
        dtype, visible = query.dtype, key.shape[2]
        group = self.columns.group_of[layer_index]
        if group not in self._of_group:
            self._of_group[group] = self.columns.mask(group, dtype)
        own = self._of_group[group]
        if self.blanks.are_alike(layer_index):
            return own
        if own is None:
            own = torch.zeros(1, 1, 1, visible, dtype=dtype, device=key.device)
        blank = self.blanks.of_layer(layer_index)
        return hide(own, hidden_columns(blank, self.blanks.starts, visible, query.shape[1]))


def new_blanks(table: SlotTable, budgets: LayerBudgets | None) -> SlotBlanks | None:
    """Counts for budgets that differ by head; None for others."""
    return None if budgets is None or budgets.columns is None else SlotBlanks(table, budgets.columns)
