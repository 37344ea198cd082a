"""The log that a cache keeps for eviction policies that look at queries: the last queries, and running scores.

Axes: B rows, L layers, Q query heads, H kv heads, n queries, W thoughts of a window, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from thoughtcache.cache.evict import split_thoughts
from thoughtcache.cache.eviction import EvictionPolicy
from thoughtcache.cache.eviction.scored import AccumulatedEviction
from thoughtcache.cache.eviction.view import Attended
from thoughtcache.cache.host_integers import Integers
from thoughtcache.cache.rotation import KeyRotation
from thoughtcache.cache.window_rules import WindowRules


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """The columns that the last queries of some rows saw.

    Attributes:
        rows: the rows.
        order: [n] places of the ring, the oldest query first.
        visible: columns that each query saw; none for one that does not count.
        first_thought: column of the oldest resident thought of each row.
        num_thoughts: W of the layers in question, or of the heads.
        heads: the kv heads in question; None for all of a layer.
    """

    rows: Int[Tensor, " b"] | slice
    order: Int[Tensor, " n"]
    visible: Bool[Tensor, "b n C"]
    first_thought: Int[Tensor, " b"]
    num_thoughts: int
    heads: list[int] | None = None

    def of_heads(self, heads: list[int], num_thoughts: int, blank: int | Int[Tensor, " b"]) -> Sight:
        """What some heads of a layer saw, behind so many blank columns.

        Args:
            heads: kv heads of one budget.
            num_thoughts: their budget.
            blank: columns behind the prompt that they do not hold, in every row.
        """
        first = self.first_thought + blank
        places = torch.arange(self.visible.shape[2], device=self.visible.device)
        held = (places < self.first_thought.unsqueeze(1)) | (places >= first.unsqueeze(1))
        return replace(
            self,
            visible=self.visible & held.unsqueeze(1),
            first_thought=first,
            num_thoughts=num_thoughts,
            heads=heads,
        )


class QueryLog:
    """A ring of the last queries of every row and layer; all rows write to the same place of it.

    Args:
        eviction: the policy that wants queries.
        num_queries: n.
        windows: W of every layer.
        scaling: factor of the products of queries and keys in the model's attention.

    Attributes:
        queries: [B, Q, n, D] of every layer, as a ring.
        scores: [B, H, W] running scores of every layer, by resident thought; None where nothing is accumulated.
        unheard: thought queries of each row that were logged since the last `hear` (for a policy that accumulates) or
            since the row began, on the host.
        place: [1] where the next query goes, on the device.
    """

    def __init__(self, eviction: EvictionPolicy, *, num_queries: int, windows: Sequence[int], scaling: float) -> None:
        self.accumulator = eviction if isinstance(eviction, AccumulatedEviction) else None
        self.num_queries = num_queries
        self.windows = windows
        self.scaling = scaling
        self.num_query_heads = self.num_heads = 0
        self.queries: list[Tensor | None] = [None] * len(windows)
        self.scores: list[Tensor | None] = [None] * len(windows)
        self.unheard: Integers = np.zeros(0, np.int64)
        self.place = torch.zeros(1, dtype=torch.long)

    def allocate(self, num_rows: int, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Make room.

        Args:
            num_rows: B.
            shape: (Q, H, D).
            dtype: dtype in which the model has its queries.
            device: device of the queries.
        """
        query_heads, heads, size = shape
        self.num_query_heads, self.num_heads = query_heads, heads
        exact = torch.promote_types(dtype, torch.float32)
        for index in range(len(self.queries)):
            self.queries[index] = torch.zeros(num_rows, query_heads, self.num_queries, size, dtype=dtype, device=device)
            if self.accumulator is not None:
                self.scores[index] = torch.zeros(num_rows, heads, self.windows[index], dtype=exact, device=device)
        self.unheard = np.zeros(num_rows, np.int64)
        self.place = torch.zeros(1, dtype=torch.long, device=device)

    def full_rows(self) -> NDArray[np.bool_]:
        """Rows of a policy that accumulates which have as many new queries as there is room for."""
        full: NDArray[np.bool_] = self.unheard >= self.num_queries
        return np.zeros_like(full) if self.accumulator is None else full

    def clear(self) -> None:
        """Forget everything, the number of rows included."""
        self.queries = [None] * len(self.queries)
        self.scores = [None] * len(self.scores)
        self.unheard = np.zeros(0, np.int64)

    def select_rows(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows, in this order; a row may come several times."""
        self.queries = [None if one is None else one.index_select(0, rows) for one in self.queries]
        self.scores = [None if one is None else one.index_select(0, rows) for one in self.scores]
        if len(self.unheard):
            self.unheard = self.unheard[rows.cpu().numpy()]

    def observe(self, layer_index: int, queries: Float[Tensor, "B Q 1 D"]) -> None:
        """Keep the query of one new token of every row."""
        ring = self.queries[layer_index]
        assert ring is not None
        ring.index_copy_(2, self.place, queries.to(ring.dtype))

    def advance(self, rows: NDArray[np.bool_] | bool) -> None:
        """All layers have seen the token; count it for these rows."""
        self.place.add_(1).remainder_(self.num_queries)
        self.unheard += rows
        if self.accumulator is None:
            np.minimum(self.unheard, self.num_queries, out=self.unheard)

    def sight(
        self,
        rows: Int[Tensor, " b"] | slice,
        counts: Sequence[int],
        num_columns: int,
        lengths: Int[Tensor, " b"],
        first_thought: Int[Tensor, " b"],
        hidden: Bool[Tensor, "b C"] | None = None,
        *,
        num_thoughts: int,
    ) -> Sight:
        """The columns that the last queries of some rows saw, the same in every layer of one budget.

        Args:
            rows: the rows.
            counts: queries of each row that count.
            num_columns: C.
            lengths: columns that each row has filled.
            first_thought: column at which the thoughts of each row begin.
            hidden: columns that no query sees, such as padding of prompts.
            num_thoughts: W of these layers.
        """
        device, n = lengths.device, self.num_queries
        behind = torch.arange(n, 0, -1, device=device)  # the newest query is that of the last column
        last_seen = lengths.unsqueeze(1) - behind
        visible = torch.arange(num_columns, device=device) <= last_seen.unsqueeze(2)
        visible &= (behind <= torch.tensor(list(counts), device=device).unsqueeze(1)).unsqueeze(2)
        if hidden is not None:
            visible &= ~hidden.unsqueeze(1)
        order = (self.place + torch.arange(n, device=device)) % n
        return Sight(rows=rows, order=order, visible=visible, first_thought=first_thought, num_thoughts=num_thoughts)

    def attended(self, layer_index: int, sight: Sight, keys: Float[Tensor, "b H C D"]) -> Attended:
        """The last queries of one layer and what they saw.

        Args:
            layer_index: decoder layer, from 0.
            sight: what the queries of these rows saw.
            keys: cached keys of all their columns, in all heads of the layer.
        """
        ring = self.queries[layer_index]
        assert ring is not None
        queries = ring[sight.rows].index_select(2, sight.order)
        if sight.heads is not None:
            queries = queries[:, self._query_heads(sight.heads)]
            keys = keys[:, sight.heads]
        return Attended(
            queries=queries,
            keys=keys,
            visible=sight.visible,
            first_thought=sight.first_thought,
            num_thoughts=sight.num_thoughts,
            scaling=self.scaling,
        )

    def hear(self, layer_index: int, sight: Sight, keys: Float[Tensor, "b H C D"]) -> None:
        """Add what the queries of these rows say to the running scores."""
        scores, rows, attended = self.scores[layer_index], sight.rows, self.attended(layer_index, sight, keys)
        assert scores is not None
        assert self.accumulator is not None
        more = self.accumulator.increments(attended).to(scores.dtype)
        if sight.heads is None:
            scores[rows] += more
        else:
            self._put_scores(layer_index, sight, scores[rows][:, sight.heads, : sight.num_thoughts] + more)

    def scores_of(self, layer_index: int, sight: Sight) -> Float[Tensor, "b H W"] | None:
        """The running scores of these rows; None where nothing is accumulated."""
        scores = self.scores[layer_index]
        if scores is None or sight.heads is None:
            return None if scores is None else scores[sight.rows]
        return scores[sight.rows][:, sight.heads, : sight.num_thoughts]

    def evict(
        self,
        layer_index: int,
        sight: Sight,
        slots: Int[Tensor, "b H E"],
        rotation: KeyRotation | None,
        roll: int,
    ) -> None:
        """Running scores move with the thoughts, and with rolling positions queries as the next token does."""
        scores, ring, num_evicted = self.scores_of(layer_index, sight), self.queries[layer_index], slots.shape[2]
        assert ring is not None
        rows, heads = sight.rows, sight.heads
        if scores is not None:
            _, kept = split_thoughts(scores.unsqueeze(-1), slots, num_evicted)
            self._put_scores(layer_index, sight, torch.nn.functional.pad(kept.squeeze(-1), (0, num_evicted)))
        if rotation is not None and roll:
            turned = rotation.shift(ring[rows], -roll)
            if heads is not None:
                own = self._query_heads(heads)
                before = ring[rows].clone()
                before[:, own] = turned[:, own]
                turned = before
            ring[rows] = turned

    def _query_heads(self, heads: list[int]) -> list[int]:
        """The query heads of some kv heads."""
        group = self.num_query_heads // self.num_heads
        return [head * group + index for head in heads for index in range(group)]

    def _put_scores(self, layer_index: int, sight: Sight, scores: Float[Tensor, "b H W"]) -> None:
        """Write the running scores of these rows and heads."""
        buffer = self.scores[layer_index]
        assert buffer is not None
        if sight.heads is None:
            buffer[sight.rows] = scores
            return
        changed = buffer[sight.rows]  # a copy, or a view of all rows
        changed[:, sight.heads, : sight.num_thoughts] = scores
        buffer[sight.rows] = changed


def new_query_log(rules: WindowRules, num_layers: int, scaling: float) -> QueryLog | None:
    """An empty log for an eviction policy that looks at queries; None for others.

    Args:
        rules: what bounds the cache.
        num_layers: L.
        scaling: factor of the products of queries and keys in the model's attention.
    """
    budgets = rules.budgets
    if not rules.num_queries or budgets is None:
        return None
    windows = [budgets.size(index) for index in range(num_layers)]
    return QueryLog(rules.eviction, num_queries=rules.num_queries, windows=windows, scaling=scaling)
