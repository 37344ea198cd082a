"""Ours: the linear sum with a write gate by content and unit-norm addresses (docs/design.md, section 2, "gated")."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.rules.base import EncoderWeights, ExtraParameter, StateRule, outer_flops, projection_flops
from thoughtcache.state.rules.common import unit
from thoughtcache.state.rules.naive_common import gated_sum

if TYPE_CHECKING:
    from thoughtcache.state.encoder import ThoughtEncoder

GATE = (
    ExtraParameter(name="gate", initial=0.0, size=lambda kv_size: 2 * kv_size),
    ExtraParameter(name="gate_bias", initial=0.0),
)
"""`w_g` [2 K] and `b_0`."""


def gated_parts(
    weights: EncoderWeights, keys: Float[Tensor, "B E K"], values: Float[Tensor, "B E K"]
) -> tuple[Float[Tensor, "B E 1"], Float[Tensor, "B E R"], Float[Tensor, "B E G"]]:
    """Write strength `b_i`, address `a_i = unit(W_V v_i)` and content `u_i = Q W_K k_i` of every evicted token."""
    gate, bias = weights.extra["gate"], weights.extra["gate_bias"]
    logits = torch.cat([keys, values], dim=-1) @ gate + bias + weights.log_write_scale
    address = unit(values @ weights.value_projection.T)
    content = keys @ weights.key_projection.T @ weights.queries.T
    return logits.sigmoid().unsqueeze(-1), address, content


def gated_weights(
    weights: EncoderWeights, keys: Float[Tensor, "B E K"], values: Float[Tensor, "B E K"]
) -> Float[Tensor, "B E G"]:
    """`b_i |u_i|`, entry by entry: how much each token counts for each global query."""
    strength, _, content = gated_parts(weights, keys, values)
    return strength * content.abs()


def gated_flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
    """Operations of `gated_parts` and of the outer products."""
    projections = projection_flops(kv_size, num_evicted, rank)
    return projections + 4 * num_evicted * kv_size + 2 * outer_flops(num_evicted, rank, num_global_tokens)


class GatedRule(StateRule):
    """`S + sum_i b_i u_i a_i^T`."""

    name: ClassVar[str] = "gated"
    parameters: ClassVar[tuple[ExtraParameter, ...]] = GATE
    saved_per_entry: ClassVar[int] = 6

    @staticmethod
    def write(weights: EncoderWeights, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`S + sum_i b_i u_i a_i^T`."""
        strength, address, content = gated_parts(weights, keys, values)
        return state + (strength * content).transpose(1, 2) @ address

    @staticmethod
    def token_weights(weights: EncoderWeights, keys: Tensor, values: Tensor) -> Tensor:
        """`b_i |u_i|`."""
        return gated_weights(weights, keys, values)

    @staticmethod
    def naive_write(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor) -> Tensor:
        """`S + sum_i b_i u_i a_i^T`."""
        return gated_sum(encoder, S, K_e, V_e, delta=False)

    @staticmethod
    def flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
        """Projections, the gate, content and outer products."""
        return gated_flops(kv_size, num_evicted, rank, num_global_tokens)
