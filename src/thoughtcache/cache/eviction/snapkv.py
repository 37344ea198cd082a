"""SnapKV (Li et al., arXiv 2404.14469): what the last queries attended to stays."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool1d

from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView


class SnapKVEviction(ScoredEviction):
    """Attention of the last 32 queries, summed over them, averaged over the query heads of a group, and pooled.

    Official code: FasterDecoding/SnapKV, `snapkv/monkeypatch/snapkv_utils.py` (window 32, kernel 5, average pooling;
    the newest 32 tokens always stay). Deviations: it is applied at every eviction while decoding and not once to the
    prompt; keys of one kv head share a choice, by the mean over its query heads, as kvpress has it; the pooling runs
    over the thoughts alone, because the prompt never leaves; windows that keep fewer than 64 thoughts look at, and
    protect, half of what they keep.
    """

    name: ClassVar[str] = "snapkv"
    max_queries: ClassVar[int] = 32
    max_protected: ClassVar[int] = 32
    kernel: ClassVar[int] = 5

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """The pooled sums; beyond the ends of the window stand zeros, which count."""
        assert view.attended is not None
        summed = view.attended.weights().sum(dim=3).mean(dim=2)
        return avg_pool1d(summed, self.kernel, stride=1, padding=self.kernel // 2)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The sums of `score`, thought by thought."""
        resident, count = len(head.keys), len(head.queries)
        sums = [0.0] * resident
        for number, group in enumerate(head.queries):
            num_thoughts = resident - (count - 1 - number)
            for query in group:
                for slot, weight in enumerate(head.weights(query, num_thoughts)):
                    sums[slot] += weight / len(group)
        reach = self.kernel // 2
        return [sum(sums[max(0, slot - reach) : slot + reach + 1]) / self.kernel for slot in range(resident)]
