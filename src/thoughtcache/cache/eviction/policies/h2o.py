"""H2O (Zhang et al., arXiv 2306.14048): heavy hitters, by all the attention that they have had, and the newest stay."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.scored import AccumulatedEviction
from thoughtcache.cache.eviction.view import Attended


class H2OEviction(AccumulatedEviction):
    """Accumulated attention: `a_j` adds the softmax weight of every later query, and of its own, on thought `j`.

    Official code: FMInference/H2O, `h2o_hf/utils_real_drop/modify_llama.py`, `H2OKVCache_LayerWise`. As there a thought
    starts with its own row, and the score of a thought that leaves is gone. Half of what stays is recent, half are
    heavy hitters (the paper's split). Deviations: scores are summed over the query heads of a group, so that a choice
    is made per kv head; rows of a batch are kept apart, which the official code adds up; evictions come in blocks of
    `num_evicted`. Older thoughts have had more queries, a bias that the paper leaves as it is.
    """

    name: ClassVar[str] = "h2o"
    summary: ClassVar[str] = "what had the most attention so far, and the newest (H2O)"
    max_protected: int = 2**31

    def increments(self, attended: Attended) -> Float[Tensor, "B H W"]:
        """Attention of the new queries, summed over them and over the query heads of a group."""
        return attended.weight_sums()

    def naive_step(self, head: NaiveHead) -> None:
        """Add the weights of the newest query."""
        for query in head.queries[-1]:
            for slot, weight in enumerate(head.weights(query, len(head.keys))):
                head.scores[slot] += weight
