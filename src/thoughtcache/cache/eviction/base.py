"""The interface of an eviction policy: a choice of slots, per layer and kv head, made once while sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from thoughtcache.cache.eviction.view import EvictionView


class EvictionPolicy(ABC):
    """Chooses the resident thoughts that leave. The prompt is never offered to it.

    The choice is recorded in the rollout (`Eviction.slots`) and repeated, never recomputed, by the learner. Policies
    that score thoughts: `scored.py`. A policy with settings of its own is a frozen dataclass, whose fields they are
    (`options.py`).
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    """What stays, in a few words, for the help of the command line."""
    chooses: ClassVar[bool] = True
    """Whether `select` names slots, which are recorded; a policy that always takes the oldest says False."""
    turns_queries: ClassVar[bool] = False
    """Whether it needs `EvictionView.rotation`; a model whose keys cannot be moved is refused then."""

    def num_queries(self, window: int, num_evicted: int) -> int:
        """Number of the last queries that the policy wants to see; 0 for none.

        Args:
            window: W, resident thoughts of a full window.
            num_evicted: E, thoughts that leave at once.
        """
        return 0

    @abstractmethod
    def select(self, view: EvictionView) -> Int[Tensor, "B H E"] | None:
        """Slots (0 = oldest resident thought) that leave this layer, ascending; None means the oldest ones.

        Args:
            view: one layer, as it is cached.
        """
