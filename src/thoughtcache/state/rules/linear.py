"""The paper's rule: linear cross-attention from global queries to the evicted tokens (arXiv 2602.16839, method)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.rules.base import EncoderWeights, StateRule, projection_flops
from thoughtcache.state.rules.naive_common import linear_sum

if TYPE_CHECKING:
    from thoughtcache.state.encoder import ThoughtEncoder


def linear_update(
    weights: EncoderWeights, keys: Float[Tensor, "B E K"], values: Float[Tensor, "B E K"]
) -> Float[Tensor, "B G R"]:
    """`S' = w Q (K W_K^T)^T (V W_V^T) / sqrt(G)`; no softmax, so that it is a sum over tokens."""
    memory = (keys @ weights.key_projection.T).transpose(1, 2) @ (values @ weights.value_projection.T)
    scale = weights.log_write_scale.exp() / math.sqrt(weights.queries.shape[0])
    return scale * (weights.queries @ memory)


def linear_flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
    """Operations of `linear_update`: both projections, their product, and the queries."""
    products = 2 * num_evicted * rank * rank + 2 * num_global_tokens * rank * rank
    return projection_flops(kv_size, num_evicted, rank) + products


class LinearRule(StateRule):
    """`S + S'`."""

    name: ClassVar[str] = "linear"

    @staticmethod
    def write(weights: EncoderWeights, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`S + S'`."""
        return state + linear_update(weights, keys, values)

    @staticmethod
    def naive_write(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor) -> Tensor:
        """`S + S'`."""
        return S + linear_sum(encoder, K_e, V_e)

    @staticmethod
    def flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
        """Operations of `linear_update`."""
        return linear_flops(kv_size, num_evicted, rank, num_global_tokens)
