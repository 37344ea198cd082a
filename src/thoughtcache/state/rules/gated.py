"""Ours: the linear sum with a write gate by content and unit-norm addresses (DESIGN section 2, "gated")."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.encoder import EncoderWeights
from thoughtcache.state.rules.common import unit


def gated_parts(
    weights: EncoderWeights, keys: Float[Tensor, "B E K"], values: Float[Tensor, "B E K"]
) -> tuple[Float[Tensor, "B E 1"], Float[Tensor, "B E R"], Float[Tensor, "B E G"]]:
    """Write strength `b_i`, address `a_i = unit(W_V v_i)` and content `u_i = Q W_K k_i` of every evicted token."""
    assert weights.gate is not None
    assert weights.gate_bias is not None
    logits = torch.cat([keys, values], dim=-1) @ weights.gate + weights.gate_bias + weights.log_write_scale
    address = unit(values @ weights.value_projection.T)
    content = keys @ weights.key_projection.T @ weights.queries.T
    return logits.sigmoid().unsqueeze(-1), address, content


def gated_write(
    weights: EncoderWeights,
    state: Float[Tensor, "B G R"],
    keys: Float[Tensor, "B E K"],
    values: Float[Tensor, "B E K"],
) -> Float[Tensor, "B G R"]:
    """`S + sum_i b_i u_i a_i^T`."""
    strength, address, content = gated_parts(weights, keys, values)
    return state + (strength * content).transpose(1, 2) @ address
