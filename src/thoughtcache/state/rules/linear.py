"""The paper's rule: linear cross-attention from global queries to the evicted tokens (arXiv 2602.16839, method)."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.encoder import EncoderWeights


def linear_update(
    weights: EncoderWeights, keys: Float[Tensor, "B E K"], values: Float[Tensor, "B E K"]
) -> Float[Tensor, "B G R"]:
    """`S' = w Q (K W_K^T)^T (V W_V^T) / sqrt(G)`; no softmax, so that it is a sum over tokens."""
    memory = (keys @ weights.key_projection.T).transpose(1, 2) @ (values @ weights.value_projection.T)
    scale = weights.log_write_scale.exp() / math.sqrt(weights.queries.shape[0])
    return scale * (weights.queries @ memory)


def linear_write(
    weights: EncoderWeights,
    state: Float[Tensor, "B G R"],
    keys: Float[Tensor, "B E K"],
    values: Float[Tensor, "B E K"],
) -> Float[Tensor, "B G R"]:
    """`S + S'`."""
    return state + linear_update(weights, keys, values)
