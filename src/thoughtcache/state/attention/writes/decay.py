"""`M <- a M + b phi(k) u^T`: what is old fades, by a learned number per head that starts close to one."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from thoughtcache.state.attention.writes.base import INT64, WriteRule


class DecayWrite(WriteRule):
    """Linear writes into a memory that fades."""

    name: ClassVar[str] = "decay"
    has_decay: ClassVar[bool] = True

    @staticmethod
    def write(state: Tensor, strength: Tensor, features: Tensor, contents: Tensor, decay: Tensor | None) -> Tensor:
        """The state after all tokens of the block, in one step."""
        assert decay is not None
        num_evicted = features.shape[2]
        later = torch.arange(num_evicted - 1, -1, -1, device=state.device)
        left = decay[:, None, None] ** later[:, None]  # [H, E, 1]
        return decay[:, None, None] ** num_evicted * state + (left * strength * features).mT @ contents

    @staticmethod
    def naive_write(M: Tensor, b: Tensor, phi: Tensor, u: Tensor, a: Tensor | None) -> Tensor:
        """The state after one token."""
        assert a is not None
        return a * M + b * phi[:, None] * u[None, :]

    @staticmethod
    def flops(num_evicted: int, num_features: int, columns: int) -> int:
        """One product, and one multiplication of the state."""
        return 2 * num_evicted * num_features * columns + num_features * columns

    @staticmethod
    def saved(rows: int, heads: int, num_evicted: int, num_features: int, columns: int) -> int:
        """Features, what they are multiplied by and the product, contents; once for all rows what is left, and ages."""
        once = num_evicted * (heads + INT64)
        return once + rows * heads * num_evicted * (2 * num_features + columns + 1)
