"""Scissorhands (Liu et al., arXiv 2305.17118): what was seldom attended to less than to the average stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.options import at_least
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView


@dataclass(frozen=True, kw_only=True)
class ScissorhandsEviction(ScoredEviction):
    """Counts how often, in a window of the last queries, a thought got less than its share of the attention.

    There is no official code; this is our reading of the paper's algorithm: of a query that saw `t` tokens, the prompt
    included, a weight below `1 / t` counts one; the thoughts with the highest counts leave, and the newest stay. A
    query counts nothing for thoughts behind it, so a young thought has had fewer chances to count. The paper's history
    is 400 queries and its recent window 10 tokens. Counts tie often; the older thought leaves then. Deviations: counts
    are summed over the query heads of a group; windows that keep fewer than 800 thoughts look at half as many queries
    as they keep. The re-make in KVCache-Factory sums attention instead, which is H2O's score over a window.

    Attributes:
        max_queries: most of the last queries that are looked at.
        max_protected: most of the newest thoughts that stay whatever their scores are.
    """

    name: ClassVar[str] = "scissorhands"
    summary: ClassVar[str] = "what seldom had less than its share (Scissorhands)"
    max_queries: int = 400
    max_protected: int = 10

    def __post_init__(self) -> None:
        at_least(self, 1, "max_queries")
        at_least(self, 0, "max_protected")

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """Minus the count."""
        attended = view.attended
        assert attended is not None
        share = 1.0 / attended.visible.sum(dim=2).clamp_min(1).to(attended.dtype)
        below = (attended.weights() < share[:, None, None, :, None]) & attended.seen()
        return -below.sum(dim=(2, 3)).to(torch.float32)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The same, query by query."""
        counts = [0] * len(head.keys)
        for number, group in enumerate(head.queries):
            seen = head.num_seen(number)
            for query in group:
                for slot, weight in enumerate(head.weights(query, seen)):
                    counts[slot] += weight < 1.0 / (len(head.prompt) + seen)
        return [-float(count) for count in counts]
