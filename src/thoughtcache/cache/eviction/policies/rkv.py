"""R-KV (Cai et al., arXiv 2505.24133): what matters to the last queries and is not said again later stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import max_pool1d, normalize

from thoughtcache.cache.eviction.naive_view import NaiveHead, softmax
from thoughtcache.cache.eviction.options import at_least, odd
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView, shares

NUM_ROWS = 256
"""Thoughts whose cosines with all others are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class RKVEviction(ScoredEviction):
    """The score is `w I - (1 - w) R`, of an importance `I` and a redundancy `R`.

    `I`: products of the last queries and the thoughts before the protected ones, the largest of a group's query heads;
    softmax over these thoughts, mean over the queries, maximum over neighbours. `R`: cosines of all pairs of thoughts,
    0 for a thought and itself; of each row the newest column above the threshold becomes 0, so that the newest of its
    kind is not held against itself; mean over the rows, softmax over the thoughts.

    Official code: Zefan-Cai/R-KV, `rkv/compression/r1_kv.py` and `rkv/utils.py` (window 8, kernel 7, threshold 0.5, and
    a weight of 0.07 in the class and 0.1 in the paper and README, which is ours). Deviations: the prompt, which stays,
    is no part of either term; a row without a similar column loses none, where the official code zeroes column 0; what
    is kept stays in its order in time. Pairs live in blocks of rows: `NUM_ROWS * W` numbers per kv head and sequence.

    Attributes:
        max_queries: most of the last queries that are looked at.
        max_protected: most of the newest thoughts that stay whatever their scores are.
        kernel: thoughts over which the importance is the largest, an odd number.
        threshold: cosine above which two thoughts are alike.
        importance: weight of the importance against the redundancy, in [0, 1].
    """

    name: ClassVar[str] = "r-kv"
    summary: ClassVar[str] = "what matters to the last queries and is not repeated (R-KV)"
    max_queries: int = 8
    max_protected: int = 8
    kernel: int = 7
    threshold: float = 0.5
    importance: float = 0.1

    def __post_init__(self) -> None:
        at_least(self, 1, "max_queries")
        at_least(self, 0, "max_protected")
        odd(self, "kernel")
        if not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be a cosine in [-1, 1], got {self.threshold}")
        if not 0.0 <= self.importance <= 1.0:
            raise ValueError(f"importance must be in [0, 1], got {self.importance}")

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """The weighted difference; a protected thought has no importance."""
        attended = view.attended
        assert attended is not None
        resident = view.keys.shape[2]
        older = resident - self.num_protected(resident, view.num_evicted)
        candidates = torch.arange(resident, device=view.keys.device) < older
        largest = attended.of_thoughts(attended.products()).amax(dim=2)
        weights = shares(largest, attended.seen()[:, :, 0] & candidates)
        mean = weights.sum(dim=2) / attended.present.sum(dim=1)[:, None, None]
        importance = max_pool1d(mean, self.kernel, stride=1, padding=self.kernel // 2)
        redundancy = _redundancy(view.keys.to(attended.dtype), self.threshold)
        return self.importance * importance - (1 - self.importance) * redundancy

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The same, pair by pair."""
        resident, reach = len(head.keys), self.kernel // 2
        older = resident - self.num_protected(resident, head.num_evicted)
        mean = [0.0] * resident
        for number, group in enumerate(head.queries):
            seen = head.keys[: min(older, head.num_seen(number))]
            weights = softmax([max(head.product(query, key) for query in group) for key in seen])
            for slot, weight in enumerate(weights):
                mean[slot] += weight / len(head.queries)
        importance = [max(mean[max(0, slot - reach) : slot + reach + 1]) for slot in range(resident)]
        cosines = [[0.0 if i == j else _cosine(a, b) for j, b in enumerate(head.keys)] for i, a in enumerate(head.keys)]
        for row in cosines:
            alike = [slot for slot, cosine in enumerate(row) if cosine > self.threshold]
            if alike:
                row[alike[-1]] = 0.0
        redundancy = softmax([sum(row[slot] for row in cosines) / resident for slot in range(resident)])
        return [
            self.importance * important - (1 - self.importance) * redundant
            for important, redundant in zip(importance, redundancy, strict=True)
        ]


def _redundancy(keys: Float[Tensor, "B H W D"], threshold: float) -> Float[Tensor, "B H W"]:
    """How much of each thought the others say, as shares of the thoughts."""
    directions = normalize(keys, dim=-1)
    slots = torch.arange(keys.shape[2], device=keys.device, dtype=torch.int32)
    said = torch.zeros_like(directions[..., 0])
    for first in range(0, keys.shape[2], NUM_ROWS):
        rows = slice(first, first + NUM_ROWS)
        cosines = directions[:, :, rows] @ directions.mT
        cosines.masked_fill_(slots == slots[rows, None], 0.0)
        newest = torch.where(cosines > threshold, slots, -1).amax(dim=-1, keepdim=True)  # -1 is no slot
        cosines.masked_fill_(slots == newest, 0.0)
        said += cosines.sum(dim=2)
    return (said / keys.shape[2]).softmax(dim=-1)


def _cosine(left: Tensor, right: Tensor) -> float:
    a, b = left.double(), right.double()
    return float(a @ b) / (max(float(a.norm()), 1e-12) * max(float(b.norm()), 1e-12))
