"""Softmax cross-attention instead of the linear one; for comparison (not a sum over tokens)."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.encoder import EncoderWeights


def softmax_write(
    weights: EncoderWeights,
    state: Float[Tensor, "B G R"],
    keys: Float[Tensor, "B E K"],
    values: Float[Tensor, "B E K"],
) -> Float[Tensor, "B G R"]:
    """`S + w E softmax(Q (K W_K^T)^T / sqrt(R)) (V W_V^T)`: a weighted mean times the number of tokens."""
    scores = weights.queries @ (keys @ weights.key_projection.T).transpose(1, 2) / math.sqrt(state.shape[-1])
    attended = scores.softmax(dim=-1) @ (values @ weights.value_projection.T)
    return state + weights.log_write_scale.exp() * keys.shape[1] * attended
