"""Drawing tokens: one uniform number per row and position, so that a row never depends on its batch neighbours."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ROW_STRIDE = 1_000_003


def uniform_numbers(seed: int, rows: range, count: int, device: torch.device) -> Float[Tensor, "B T"]:
    """Uniform numbers in [0, 1), fp64; row `i` depends on `(seed, i)` alone and a longer draw extends a shorter one."""
    drawn = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed * _ROW_STRIDE + row), dtype=torch.float64)
        for row in rows
    ]
    return torch.stack(drawn).to(device)


def sample_tokens(distribution: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], greedy: bool) -> Int[Tensor, " B"]:
    """One token per row by inversion of the cumulative distribution (fp64), or the most likely one.

    Args:
        distribution: log-probabilities.
        uniform: numbers in [0, 1).
        greedy: take the most likely token.
    """
    if greedy:
        return distribution.argmax(dim=-1)
    cumulative = distribution.double().exp().cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens.clamp_max(distribution.shape[-1] - 1)
