"""`M <- M + b phi(k) u^T`: linear attention with a write gate by content."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from thoughtcache.state.attention.writes.base import WriteRule


class LinearWrite(WriteRule):
    """Everything that was written stays."""

    name: ClassVar[str] = "linear"

    @staticmethod
    def write(state: Tensor, strength: Tensor, features: Tensor, contents: Tensor, decay: Tensor | None) -> Tensor:
        """The state after all tokens of the block, in one step."""
        return state + (strength * features).mT @ contents

    @staticmethod
    def naive_write(M: Tensor, b: Tensor, phi: Tensor, u: Tensor, a: Tensor | None) -> Tensor:
        """The state after one token."""
        return M + b * phi[:, None] * u[None, :]

    @staticmethod
    def flops(num_evicted: int, num_features: int, columns: int) -> int:
        """One product."""
        return 2 * num_evicted * num_features * columns

    @staticmethod
    def saved(rows: int, heads: int, num_evicted: int, num_features: int, columns: int) -> int:
        """Features, features times strength, and contents."""
        return rows * heads * num_evicted * (2 * num_features + columns)
