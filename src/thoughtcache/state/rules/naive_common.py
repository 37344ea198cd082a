"""Pieces of the equations that the naive forms share, in the paper's letters, one vector at a time. Slow on purpose.

Shapes: K_e, V_e [m, K] the evicted keys and values of one layer and one sequence; S [G, R].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from thoughtcache.state.encoder import ThoughtEncoder


def rms(x: Tensor) -> Tensor:
    """x^: RMS normalisation of one vector."""
    return x / torch.sqrt((x * x).mean() + 1e-6)


def unit(x: Tensor) -> Tensor:
    """Unit Euclidean norm of one vector."""
    return x / torch.sqrt((x * x).sum() + 1e-6)


def projected(W: Tensor, x: Tensor) -> Tensor:
    """W x / sqrt(K): the matrices are kept at unit scale."""
    y: Tensor = W @ x / x.shape[-1] ** 0.5
    return y


def projected_queries(encoder: ThoughtEncoder) -> Tensor:
    """Q = q_g W_Q^T / sqrt(K), row by row."""
    return torch.stack([projected(encoder.query_projection, q) for q in encoder.global_queries])


def linear_sum(encoder: ThoughtEncoder, K_e: Tensor, V_e: Tensor) -> Tensor:
    """S' = w Q (K^_e W_K^T)^T (V^_e W_V^T) / sqrt(G), one outer product per token."""
    Q = projected_queries(encoder)
    w = encoder.log_write_scale.exp()
    total = torch.zeros_like(Q)
    for k, v in zip(K_e, V_e, strict=True):
        content = Q @ projected(encoder.key_projection, rms(k))
        address = projected(encoder.value_projection, rms(v))
        total = total + torch.outer(content, address)
    S: Tensor = w * total / Q.shape[0] ** 0.5
    return S


def gated_sum(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor, *, delta: bool) -> Tensor:
    """S <- S + b_i u_i a_i^T, or with `delta` S + b_i (u_i - S a_i) a_i^T, for every token in its order in time."""
    Q = projected_queries(encoder)
    w, w_g, b_0 = encoder.log_write_scale.exp(), encoder.get_parameter("gate"), encoder.get_parameter("gate_bias")
    for k, v in zip(K_e, V_e, strict=True):
        b = torch.sigmoid(w_g @ torch.cat([rms(k), rms(v)]) + b_0 + torch.log(w))
        a = unit(projected(encoder.value_projection, rms(v)))
        u = Q @ projected(encoder.key_projection, rms(k))
        S = S + b * torch.outer(u - S @ a if delta else u, a)
    return S
