"""TOVA (Oren et al., arXiv 2401.06104): what the last token attends to stays, the same in all heads of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.options import at_least
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView


@dataclass(frozen=True, kw_only=True)
class TOVAEviction(ScoredEviction):
    """Attention of the last query, averaged over all query heads of the layer; one choice for all kv heads.

    Official code: schwartz-lab-NLP/TOVA, `src/tova_cache.py`. As there nothing is protected, the newest thought neither
    (kvpress protects it: `max_protected=1`), and there are no sinks. Deviations: several thoughts leave at once by the
    attention of one query, where the official code drops one at every step; the prompt competes for the attention and
    not for the room.

    Attributes:
        max_protected: most of the newest thoughts that stay whatever their scores are.
    """

    name: ClassVar[str] = "tova"
    summary: ClassVar[str] = "what the last query attends to, the same in all heads (TOVA)"
    max_queries = 1
    max_protected: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "max_protected")

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """The weights of the last query, one mean for all kv heads."""
        assert view.attended is not None
        newest = view.attended.weights()[:, :, :, -1]
        return newest.mean(dim=(1, 2)).unsqueeze(1).expand(-1, newest.shape[1], -1)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The mean over the query heads of every kv head of the layer."""
        resident = len(head.keys)
        rows = [other.weights(query, resident) for other in head.heads for query in other.queries[-1]]
        return [sum(row[slot] for row in rows) / len(rows) for slot in range(resident)]
