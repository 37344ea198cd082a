"""The delta rule over a block of evicted tokens, in parallel (triangular solve) instead of token by token.

With `d_i = b_i (u_i - S_{i-1} a_i)` and `S_i = S_{i-1} + d_i a_i^T`, the corrections of a block solve the unit lower
triangular system `(I + diag(b) tril(A A^T, -1)) D = diag(b) (U - A S_0^T)`. The loop is in `state/naive.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.encoder import EncoderWeights
from thoughtcache.state.rules.gated import gated_parts


def delta_write(
    weights: EncoderWeights,
    state: Float[Tensor, "B G R"],
    keys: Float[Tensor, "B E K"],
    values: Float[Tensor, "B E K"],
) -> Float[Tensor, "B G R"]:
    """`S <- S + b_i (u_i - S a_i) a_i^T` for every evicted token in its order in time."""
    strength, address, content = gated_parts(weights, keys, values)
    overlap = torch.tril(address @ address.transpose(1, 2), diagonal=-1)
    system = strength * overlap + torch.eye(keys.shape[1], dtype=state.dtype, device=state.device)
    target = strength * (content - address @ state.transpose(1, 2))
    corrections: Tensor = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
    return state + corrections.transpose(1, 2) @ address
