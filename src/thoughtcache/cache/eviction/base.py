"""What an eviction policy is: a choice of slots, per layer and kv head, made once while sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor


class EvictionPolicy(ABC):
    """Chooses the resident thoughts that leave. The prompt is never offered to it.

    The choice is recorded in the rollout (`Eviction.slots`) and repeated, never recomputed, by the learner.
    """

    name: ClassVar[str]
    chooses: ClassVar[bool] = True
    """Whether `select` names slots, which are recorded; a policy that always takes the oldest says False."""

    @abstractmethod
    def select(
        self,
        layer_index: int,
        keys: Float[Tensor, "B H W D"],
        values: Float[Tensor, "B H W D"],
        num_evicted: int,
        events: Sequence[tuple[int, int]],
    ) -> Int[Tensor, "B H E"] | None:
        """Slots (0 = oldest resident thought) that leave this layer, ascending; None means the oldest ones.

        Args:
            layer_index: decoder layer, from 0.
            keys: cached (rotated) keys of the resident thoughts.
            values: cached values of the resident thoughts.
            num_evicted: how many leave, the same for every row and head.
            events: (seed of the sequence, which of its evictions this is, from 0) for every row; a choice that draws
                random numbers draws them from these, so that no row depends on another.
        """
