"""The view that an eviction policy has of one layer when windows are full.

Axes: B rows, H kv heads, Q query heads, W resident thoughts, n queries, C columns of [prompt | thoughts], D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from thoughtcache.cache.rotation import KeyRotation


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

    @property
    def dtype(self) -> torch.dtype:
        """At least fp32."""
        return torch.promote_types(self.keys.dtype, torch.float32)

    @property
    def present(self) -> Bool[Tensor, "B n"]:
        """Which of the queries there are."""
        return self.visible.any(dim=2)

    def products(self) -> Float[Tensor, "B H g n C"]:
        """Scaled products of the queries, for the g query heads of every kv head, and all keys; nothing is hidden."""
        rows, heads, _, size = self.keys.shape
        grouped = self.queries.to(self.dtype).reshape(rows, heads, -1, self.queries.shape[2], size)
        return (grouped * self.scaling) @ self.keys.to(self.dtype).unsqueeze(2).mT

    def weights(self) -> Float[Tensor, "B H g n W"]:
        """Attention weights of the queries on the resident thoughts, for the g query heads of every kv head.

        They are the softmax over all that a query saw, the prompt included, in at least fp32; 0 for a query that there
        is not yet, and for thoughts behind a query.
        """
        return self.of_thoughts(shares(self.products(), self.visible[:, None, None]))

    def weight_sums(self) -> Float[Tensor, "B H W"]:
        """The same, summed over the queries and the query heads of a group; without copies of all weights."""
        hidden = ~self.visible[:, None, None]
        products = self.products()
        weights = products.masked_fill_(hidden, torch.finfo(products.dtype).min).softmax(dim=-1)
        # A query that there is not yet counts nothing; of the others hidden columns have weight 0.
        counted = self.present.to(weights.dtype)[:, None, None].expand(weights.shape[:4]).flatten(2).unsqueeze(2)
        sums = counted @ weights.flatten(2, 3)
        return self.of_thoughts(sums.unsqueeze(3))[:, :, 0, 0]

    def of_thoughts(self, columns: Shaped[Tensor, "B #H #g n C"]) -> Shaped[Tensor, "B #H #g n W"]:
        """What stands at the columns of the resident thoughts; 0 where a row has fewer."""
        places = self.first_thought.unsqueeze(1) + torch.arange(self.num_thoughts, device=self.keys.device)
        last = columns.shape[-1] - 1
        index = places.clamp_max(last)[:, None, None, None].expand(*columns.shape[:4], -1)
        inside = (places <= last)[:, None, None, None]
        return columns.gather(-1, index).masked_fill(~inside, 0)

    def seen(self) -> Bool[Tensor, "B 1 1 n W"]:
        """Which resident thoughts each query saw."""
        return self.of_thoughts(self.visible[:, None, None])


def shares(logits: Float[Tensor, "*B C"], visible: Bool[Tensor, "*#B C"]) -> Float[Tensor, "*B C"]:
    """The softmax over what is visible, 0 elsewhere, also where nothing is."""
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~visible, lowest).softmax(dim=-1).masked_fill(~visible, 0.0)


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
        rotation: turns queries of this layer to other positions, for a policy that asks for it (`turns_queries`); None
            in a layer without positions.
        num_last: newest thoughts of each row that leave after all others, the oldest first, whatever their scores are;
            None where no row has any.
        first_head: the first of these kv heads in the layer, which is shown in parts where its budgets differ by head.
    """

    layer_index: int
    keys: Float[Tensor, "B H W D"]
    values: Float[Tensor, "B H W D"]
    num_evicted: int
    events: Sequence[tuple[int, int]]
    attended: Attended | None = None
    scores: Float[Tensor, "B H W"] | None = None
    rotation: KeyRotation | None = None
    num_last: Int[Tensor, " B"] | None = None
    first_head: int = 0
