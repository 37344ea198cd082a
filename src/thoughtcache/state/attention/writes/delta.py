"""`M <- a M + b phi(k) (u - (a M)^T phi(k))^T`: what stood at a key is replaced (gated delta rule, arXiv 2412.06464).

A block of evicted tokens is written in parallel. Relative to the decay up to a token, its corrections solve a unit
lower triangular system, as in `state/rules/delta.py`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from thoughtcache.state.attention.writes.base import INT64, WriteRule


class DeltaWrite(WriteRule):
    """A write corrects what the memory says at its key, and changes nothing at keys that share no feature."""

    name: ClassVar[str] = "delta"
    has_decay: ClassVar[bool] = True
    has_unit_features: ClassVar[bool] = True

    @staticmethod
    def write(state: Tensor, strength: Tensor, features: Tensor, contents: Tensor, decay: Tensor | None) -> Tensor:
        """The state after all tokens of the block, in one step."""
        assert decay is not None
        num_evicted = features.shape[2]
        features = features.contiguous()  # every product below would make a copy of its own
        places = torch.arange(num_evicted, device=state.device)
        base = decay[:, None, None]
        # a^(i - j) is what is left at token i of a correction made at token j.
        left = torch.tril(base ** (places[:, None] - places).clamp_min(0), diagonal=-1)
        overlap = left * (features @ features.mT)
        system = strength * overlap + torch.eye(num_evicted, dtype=state.dtype, device=state.device)
        found = base ** (places[:, None] + 1) * (features @ state)
        target = strength * (contents - found)
        corrections: Tensor = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
        still = base ** (num_evicted - 1 - places)[:, None]
        return base**num_evicted * state + (still * features).mT @ corrections

    @staticmethod
    def naive_write(M: Tensor, b: Tensor, phi: Tensor, u: Tensor, a: Tensor | None) -> Tensor:
        """The state after one token."""
        assert a is not None
        faded = a * M
        return faded + b * phi[:, None] * (u - phi @ faded)[None, :]

    @staticmethod
    def flops(num_evicted: int, num_features: int, columns: int) -> int:
        """Overlaps, what is found, the triangular solve, and the product that writes."""
        overlap = 2 * num_evicted * num_evicted * num_features
        solve = num_evicted * num_evicted * columns
        return overlap + solve + 4 * num_evicted * num_features * columns

    @staticmethod
    def saved(rows: int, heads: int, num_evicted: int, num_features: int, columns: int) -> int:
        """Features, faded too; what is found, its distance from the contents, corrections; overlaps, faded, system.

        Once for all rows: what is left between pairs of tokens (also of those in the wrong order), their ages, and the
        same of single tokens.
        """
        once = num_evicted * (num_evicted * (2 * heads + INT64) + 2 * (heads + INT64))
        return once + rows * heads * num_evicted * (2 * num_features + 3 * columns + 3 * num_evicted)
