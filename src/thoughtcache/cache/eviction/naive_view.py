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
    """

    scaling: float
    prompt: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    queries: list[list[Tensor]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def weights(self, query: Tensor, num_thoughts: int) -> list[float]:
        """Attention weights of a query on the first `num_thoughts` resident thoughts, beside the whole prompt."""
        logits = [float(query.double() @ key.double()) * self.scaling for key in self.prompt + self.keys[:num_thoughts]]
        highest = max(logits)
        exponentials = [math.exp(logit - highest) for logit in logits]
        total = sum(exponentials)
        return [value / total for value in exponentials[len(self.prompt) :]]
