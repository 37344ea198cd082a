"""Softmax cross-attention instead of the linear one; for comparison (not a sum over tokens)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.rules.base import EncoderWeights, StateRule, outer_flops, projection_flops
from thoughtcache.state.rules.naive_common import projected, projected_queries, rms

if TYPE_CHECKING:
    from thoughtcache.state.encoder import ThoughtEncoder


def _attention(weights: EncoderWeights, keys: Float[Tensor, "B E K"]) -> Float[Tensor, "B G E"]:
    """Attention weights of the global queries on the tokens of a block."""
    projected = keys @ weights.key_projection.T
    scores = weights.queries @ projected.transpose(1, 2) / math.sqrt(projected.shape[-1])
    return scores.softmax(dim=-1)


class SoftmaxRule(StateRule):
    """`S + w E softmax(Q (K W_K^T)^T / sqrt(R)) (V W_V^T)`: a weighted mean times the number of tokens."""

    name: ClassVar[str] = "softmax"

    @staticmethod
    def write(weights: EncoderWeights, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The equation above for a block of tokens."""
        attended = _attention(weights, keys) @ (values @ weights.value_projection.T)
        return state + weights.log_write_scale.exp() * keys.shape[1] * attended

    @staticmethod
    def token_weights(weights: EncoderWeights, keys: Tensor, values: Tensor) -> Tensor:
        """The attention weights of the global queries."""
        return _attention(weights, keys).transpose(1, 2)

    @staticmethod
    def naive_write(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor) -> Tensor:
        """The equation above, one query at a time."""
        w = encoder.log_write_scale.exp()
        keys = torch.stack([projected(encoder.key_projection, rms(k)) for k in K_e])
        values = torch.stack([projected(encoder.value_projection, rms(v)) for v in V_e])
        rows = [torch.softmax(keys @ q / S.shape[1] ** 0.5, dim=0) @ values for q in projected_queries(encoder)]
        return S + w * len(K_e) * torch.stack(rows)

    @staticmethod
    def flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
        """Both projections, the scores and the weighted mean."""
        return projection_flops(kv_size, num_evicted, rank) + 2 * outer_flops(num_evicted, rank, num_global_tokens)
