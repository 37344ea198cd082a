"""The view that an eviction policy has of one layer when windows are full.

Axes: B rows, H kv heads, Q query heads, W resident thoughts, n queries, C columns of [prompt | thoughts], D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Attended:
    """The last queries of every row, and the columns that each of them attended to.

    Attributes:
        queries: the last queries, oldest first, rotated as the model rotates them.
        keys: cached keys of all columns.
        visible: which columns each query attended to; none for a query that there is not yet.
        first_thought: column of the oldest resident thought of each row.
        num_thoughts: W; rows with fewer thoughts see nothing in the rest.
        scaling: factor of the products of queries and keys.
    """

    queries: Float[Tensor, "B Q n D"]
    keys: Float[Tensor, "B H C D"]
    visible: Bool[Tensor, "B n C"]
    first_thought: Int[Tensor, " B"]
    num_thoughts: int
    scaling: float

    def weights(self) -> Float[Tensor, "B H g n W"]:
        """Attention weights of the queries on the resident thoughts, for the g query heads of every kv head.

        They are the softmax over all that a query saw, the prompt included, in at least fp32; 0 for a query that there
        is not yet, and for thoughts behind a query.
        """
        rows, heads, columns, size = self.keys.shape
        dtype = torch.promote_types(self.keys.dtype, torch.float32)
        grouped = self.queries.to(dtype).reshape(rows, heads, -1, self.queries.shape[2], size)
        logits = grouped @ self.keys.to(dtype).unsqueeze(2).mT * self.scaling
        seen = self.visible[:, None, None]
        # A query that is missing sees no column, and the softmax over none is no number.
        weights = logits.masked_fill(~seen, torch.finfo(dtype).min).softmax(dim=-1).masked_fill(~seen, 0.0)
        places = self.first_thought.unsqueeze(1) + torch.arange(self.num_thoughts, device=self.keys.device)
        index = places.clamp_max(columns - 1)[:, None, None, None].expand(*weights.shape[:4], -1)
        inside = (places < columns)[:, None, None, None]
        return weights.gather(-1, index).masked_fill(~inside, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvictionView:
    """One layer at an eviction.

    Attributes:
        layer_index: decoder layer, from 0.
        keys: cached keys of the resident thoughts, rotated as they are cached; oldest first.
        values: their values.
        num_evicted: how many leave, the same number for every row and head.
        events: (seed of the sequence, which of its evictions this is, from 0) for every row; a choice that draws random
            numbers draws them from these, so that no row depends on another.
        attended: the last queries; None where the policy wants none.
        scores: what the policy has accumulated of each resident thought; None where it accumulates nothing.
    """

    layer_index: int
    keys: Float[Tensor, "B H W D"]
    values: Float[Tensor, "B H W D"]
    num_evicted: int
    events: Sequence[tuple[int, int]]
    attended: Attended | None = None
    scores: Float[Tensor, "B H W"] | None = None
