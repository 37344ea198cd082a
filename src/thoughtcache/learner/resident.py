"""Which thoughts a chunk of a replay finds resident, where budgets differ by kv head.

The columns of a layer are laid out as everywhere (`cache/budgets/heads.py`): those of a head that holds fewer thoughts
begin with blank ones, in which the first thought stands because some thought has to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from thoughtcache.cache.evict import split_thoughts
from thoughtcache.cache.head_columns import leaving_columns, with_blank_columns
from thoughtcache.learner.chunk import recorded_slots, slots_of_layer
from thoughtcache.learner.chunk_plan import Chunk
from thoughtcache.policy.batch import RolloutBatch


class Resident(ABC):
    """Thoughts that a chunk finds resident."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all of them."""

    @abstractmethod
    def of_layer(self, layer: int, rows: int) -> Int[Tensor, "rows H n"]:
        """Thoughts of the first rows in one layer, counted from 0."""


class ResidentByHead(Resident):
    """The same where budgets differ by head.

    Args:
        layers: [rows, H, n] of every layer; int32.
    """

    def __init__(self, layers: Sequence[Tensor]) -> None:
        self.layers = list(layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(columns.nbytes for columns in self.layers)

    def of_layer(self, layer: int, rows: int) -> Int[Tensor, "rows H n"]:
        """Thoughts of the first rows in one layer, counted from 0; 0 in blank columns."""
        return self.layers[layer][:rows].long()


def resident_by_head(batch: RolloutBatch, chunks: Sequence[Chunk], device: torch.device) -> list[Resident | None]:
    """The thoughts that each chunk finds resident on entry; None for the first one."""
    budgets, width, found = batch.budgets, batch.prompts.ids.shape[1], list[Resident | None]()
    assert budgets is not None
    assert budgets.columns is not None
    resident: list[Tensor] = []
    for chunk in chunks:
        found.append(ResidentByHead(resident) if resident else None)
        event = chunk.segment - 1
        if chunk.evicts:
            slots = recorded_slots(batch, event, chunk.rows, device)
            for layer, columns in enumerate(budgets.columns):
                if budgets.is_due(layer, event):
                    held = with_blank_columns(columns, event, resident[layer][: chunk.rows].unsqueeze(-1))
                    chosen = slots_of_layer(batch, event, layer, slots)
                    left = leaving_columns(columns, event, chosen, held.shape[2], held)
                    resident[layer] = split_thoughts(held, left, columns.num_evicted)[1].squeeze(-1)
        added = torch.arange(max(chunk.start - width, 0), max(chunk.stop - width, 0), dtype=torch.int32, device=device)
        before = resident or [added.new_empty(chunk.rows, len(one.sizes), 0) for one in budgets.columns]
        before = [one[: chunk.rows] for one in before]
        resident = [torch.cat([one, added.expand(*one.shape[:2], -1)], dim=-1) for one in before]
    return found
