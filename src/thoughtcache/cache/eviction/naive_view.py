"""The view of the naive form of an eviction policy: one kv head of one layer, token by token, as lists."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(kw_only=True, slots=True)
class NaiveHead:
    """One kv head of one sequence.

    Attributes:
        scaling: factor of the products of queries and keys.
        prompt: [D] key of every prompt token.
        keys: [D] key of every resident thought, oldest first.
        values: [D] their values.
        queries: the newest queries, oldest first; each one a list with a [D] query for every query head of the group.
        scores: what the policy has accumulated of each resident thought.
        layer_index: decoder layer, from 0.
        index: which of `heads` this is.
        heads: all kv heads of the layer, this one included; where budgets differ by head, those of this one's budget.
        first_head: the first of `heads` in the layer.
        num_evicted: how many leave.
        event: (seed of the sequence, which of its evictions this is, from 0).
        frequencies: angle per position of the rotary embedding's pairs (`KeyRotation`); None in a layer without
            positions.
        num_last: newest thoughts that leave after all others, the oldest first.
    """

    scaling: float
    prompt: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    queries: list[list[Tensor]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    layer_index: int = 0
    index: int = 0
    heads: list[NaiveHead] = field(default_factory=list, repr=False, compare=False)
    first_head: int = 0
    num_evicted: int = 1
    event: tuple[int, int] = (0, 0)
    frequencies: Tensor | None = None
    num_last: int = 0

    def product(self, query: Tensor, key: Tensor) -> float:
        """The product of a query and a key, as attention scales it."""
        return float(query.double() @ key.double()) * self.scaling

    def weights(self, query: Tensor, num_thoughts: int) -> list[float]:
        """Attention weights of a query on the first `num_thoughts` resident thoughts, beside the whole prompt."""
        shares = softmax([self.product(query, key) for key in self.prompt + self.keys[:num_thoughts]])
        return shares[len(self.prompt) :]

    def num_seen(self, number: int) -> int:
        """Resident thoughts that query `number` of `queries` saw: its own and those before it."""
        return len(self.keys) - (len(self.queries) - 1 - number)


def softmax(logits: list[float]) -> list[float]:
    """The shares of some logits."""
    highest = max(logits)
    exponentials = [math.exp(logit - highest) for logit in logits]
    total = sum(exponentials)
    return [value / total for value in exponentials]
