"""What a write rule of the memory in attention space is: one file with its fast form, its loop, and its arithmetic.

Axes: B rows, H key-value heads, E evicted tokens, F features, C = D + 1 columns of the state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

INT64 = 2
"""fp32 numbers that take as many bytes as one integer of a tensor of places."""


class WriteRule(ABC):
    """How evicted tokens change the memory of a layer. Never instantiated."""

    name: ClassVar[str]
    has_decay: ClassVar[bool] = False
    """Whether the rule multiplies the state by a learned number per head and token."""
    has_unit_features: ClassVar[bool] = False
    """Whether features get unit length, so that a write can replace what was written before."""

    @staticmethod
    @abstractmethod
    def write(
        state: Float[Tensor, "B H F C"],
        strength: Float[Tensor, "B H E 1"],
        features: Float[Tensor, "B H E F"],
        contents: Float[Tensor, "B H E C"],
        decay: Float[Tensor, " H"] | None,
    ) -> Float[Tensor, "B H F C"]:
        """The state after these tokens, in their order in time, have left.

        Args:
            state: the state before.
            strength: how strongly each token is written, between 0 and 1.
            features: features of its key.
            contents: its value, and a one.
            decay: what one token leaves of the state of each head; None unless `has_decay`.
        """

    @staticmethod
    @abstractmethod
    def naive_write(M: Tensor, b: Tensor, phi: Tensor, u: Tensor, a: Tensor | None) -> Tensor:
        """The same for one token of one head: M [F, C], b [], phi [F], u [C], a []."""

    @staticmethod
    @abstractmethod
    def flops(num_evicted: int, num_features: int, columns: int) -> int:
        """Operations of one write of one head of one sequence."""

    @staticmethod
    @abstractmethod
    def saved(rows: int, heads: int, num_evicted: int, num_features: int, columns: int) -> int:
        """fp32 numbers that the backward pass of `write` needs of one layer, beside the state and the strength."""
