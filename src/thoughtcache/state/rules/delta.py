"""The delta rule over a block of evicted tokens, in parallel (triangular solve) instead of token by token.

With `d_i = b_i (u_i - S_{i-1} a_i)` and `S_i = S_{i-1} + d_i a_i^T`, the corrections of a block solve the unit lower
triangular system `(I + diag(b) tril(A A^T, -1)) D = diag(b) (U - A S_0^T)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from thoughtcache.state.rules.base import EncoderWeights, ExtraParameter, StateRule, outer_flops
from thoughtcache.state.rules.gated import GATE, gated_flops, gated_parts, gated_weights
from thoughtcache.state.rules.naive_common import gated_sum

if TYPE_CHECKING:
    from thoughtcache.state.encoder import ThoughtEncoder


class DeltaRule(StateRule):
    """`S <- S + b_i (u_i - S a_i) a_i^T` for every evicted token in its order in time."""

    name: ClassVar[str] = "delta"
    parameters: ClassVar[tuple[ExtraParameter, ...]] = GATE
    saved_per_entry: ClassVar[int] = 6

    @staticmethod
    def write(weights: EncoderWeights, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The whole block at once."""
        strength, address, content = gated_parts(weights, keys, values)
        overlap = torch.tril(address @ address.transpose(1, 2), diagonal=-1)
        system = strength * overlap + torch.eye(keys.shape[1], dtype=state.dtype, device=state.device)
        target = strength * (content - address @ state.transpose(1, 2))
        corrections: Tensor = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
        return state + corrections.transpose(1, 2) @ address

    @staticmethod
    def token_weights(weights: EncoderWeights, keys: Tensor, values: Tensor) -> Tensor:
        """`b_i |u_i|`, before what stood there is taken off."""
        return gated_weights(weights, keys, values)

    @staticmethod
    def naive_write(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor) -> Tensor:
        """Token by token."""
        return gated_sum(encoder, S, K_e, V_e, delta=True)

    @staticmethod
    def flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
        """Operations of the gated rule, address overlaps, reads of the old state, and the triangular solve."""
        block = outer_flops(num_evicted, rank, num_global_tokens)
        solve = num_evicted * num_evicted * (2 * rank + num_global_tokens)
        return gated_flops(kv_size, num_evicted, rank, num_global_tokens) + block + solve
