"""SnapKV (Li et al., arXiv 2404.14469): what the last queries attended to stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool1d

from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.options import at_least, odd
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView


@dataclass(frozen=True, kw_only=True)
class SnapKVEviction(ScoredEviction):
    """Attention of the last 32 queries, summed over them, averaged over the query heads of a group, and pooled.

    Official code: FasterDecoding/SnapKV, `snapkv/monkeypatch/snapkv_utils.py` (window 32, kernel 5, average pooling;
    the newest 32 tokens always stay). Deviations: it is applied at every eviction while decoding and not once to the
    prompt; keys of one kv head share a choice, by the mean over its query heads, as kvpress has it; the pooling runs
    over the thoughts alone, because the prompt never leaves; windows that keep fewer than 64 thoughts look at, and
    protect, half of what they keep.

    Attributes:
        max_queries: most of the last queries that are looked at.
        max_protected: most of the newest thoughts that stay whatever their scores are.
        kernel: thoughts over which scores are averaged, an odd number.
    """

    name: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = "what the last queries attended to (SnapKV)"
    max_queries: int = 32
    max_protected: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        at_least(self, 1, "max_queries")
        at_least(self, 0, "max_protected")
        odd(self, "kernel")

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """The pooled sums; beyond the ends of the window stand zeros, which count."""
        assert view.attended is not None
        attended = view.attended
        summed = attended.weight_sums() * (attended.keys.shape[1] / attended.queries.shape[1])
        return avg_pool1d(summed, self.kernel, stride=1, padding=self.kernel // 2)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The sums of `score`, thought by thought."""
        resident = len(head.keys)
        sums = [0.0] * resident
        for number, group in enumerate(head.queries):
            for query in group:
                for slot, weight in enumerate(head.weights(query, head.num_seen(number))):
                    sums[slot] += weight / len(group)
        reach = self.kernel // 2
        return [sum(sums[max(0, slot - reach) : slot + reach + 1]) / self.kernel for slot in range(resident)]
