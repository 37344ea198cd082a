"""Policies that score thoughts: the lowest scores leave, the newest thoughts are protected."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.view import Attended, EvictionView


class ScoredEviction(EvictionPolicy):
    """Takes out the thoughts of the lowest scores, per kv head.

    The newest thoughts are protected: `max_protected` of them, and at most half of what stays, so that there is a
    choice at every window. Of equal scores the older thought leaves.

    A policy that looks at the last queries says how many (`max_queries`); where fewer thoughts were processed it gets
    what there is. With rolling positions the logged queries move with the newest thought: by as many positions as
    thoughts leave.
    """

    max_queries: int = 0
    max_protected: int = 0

    def num_queries(self, window: int, num_evicted: int) -> int:
        """`max_queries`, and at most half of what stays."""
        return min(self.max_queries, max(1, (window - num_evicted) // 2))

    @abstractmethod
    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """The score of each resident thought, in at least fp32; the lowest leave.

        Args:
            view: one layer, as it is cached.
        """

    def select(self, view: EvictionView) -> Int[Tensor, "B H E"]:
        """The lowest scores among what is not protected, ascending slots."""
        scores = self.score(view)
        resident = scores.shape[2]
        recent = self.num_protected(resident, view.num_evicted)
        slots = torch.arange(resident, device=scores.device)
        protected = slots >= resident - recent
        if view.num_last is not None:
            protected = protected | (slots >= resident - view.num_last[:, None, None])
        # The sort is stable: where all others have left, the oldest of the protected thoughts leave.
        order = scores.masked_fill(protected, float("inf")).argsort(dim=-1, stable=True)
        return order[:, :, : view.num_evicted].sort(dim=-1).values

    def num_protected(self, window: int, num_evicted: int) -> int:
        """Newest thoughts that stay whatever their scores are."""
        return min(self.max_protected, (window - num_evicted) // 2)

    # The same in loops, for one kv head: run by policy/naive_eviction.py.

    def naive_step(self, head: NaiveHead) -> None:
        """Called after every thought, whose query is the last one of `head`."""

    @abstractmethod
    def naive_score(self, head: NaiveHead) -> list[float]:
        """The score of each resident thought."""

    def naive_select(self, head: NaiveHead, num_evicted: int) -> list[int]:
        """Take the lowest score again and again, the first one of equals; then what is protected, the oldest first."""
        scores = self.naive_score(head)
        protected = min(max(self.num_protected(len(scores), num_evicted), head.num_last), len(scores))
        candidates = list(range(len(scores) - protected))
        behind = list(range(len(scores) - protected, len(scores)))
        chosen: list[int] = []
        for _ in range(num_evicted):
            lowest = min(candidates, key=lambda slot: scores[slot]) if candidates else behind[0]
            (candidates or behind).remove(lowest)
            chosen.append(lowest)
        return sorted(chosen)


class AccumulatedEviction(ScoredEviction):
    """Scores thoughts by what every query adds to a running score, which moves with the thoughts.

    It is asked for `increments` after every `num_evicted` thoughts and before each eviction, so that every query is
    counted once; `naive_step` adds to `NaiveHead.scores` thought by thought.
    """

    def num_queries(self, window: int, num_evicted: int) -> int:
        """The number of queries since the last look."""
        return num_evicted

    @abstractmethod
    def increments(self, attended: Attended) -> Float[Tensor, "B H W"]:
        """The amounts that the queries since the last look add to the running scores.

        Args:
            attended: these queries, and what each of them attended to.
        """

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """The running scores."""
        assert view.scores is not None
        return view.scores

    @abstractmethod
    def naive_step(self, head: NaiveHead) -> None:
        """Add what the newest query says to `head.scores`."""

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The running scores."""
        return head.scores
