"""The equations of DESIGN section 2 as loops over tokens, one sequence, in the paper's letters. Slow on purpose.

Shapes: K_e, V_e [m, K] the evicted keys and values of one layer and one sequence; S [G, R].
"""

from __future__ import annotations

import torch
from torch import Tensor

from thoughtcache.state.encoder import ThoughtEncoder


def rms(x: Tensor) -> Tensor:
    """x^: RMS normalisation of one vector."""
    return x / torch.sqrt((x * x).mean() + 1e-6)


def unit(x: Tensor) -> Tensor:
    """Unit Euclidean norm of one vector."""
    return x / torch.sqrt((x * x).sum() + 1e-6)


def normalise(S: Tensor) -> Tensor:
    """||S||_F = sqrt(min(G, R)); the zero state stays zero."""
    norm = torch.sqrt((S * S).sum())
    return S if norm == 0 else S * (min(S.shape) ** 0.5 / norm)


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


def naive_initial_state(encoder: ThoughtEncoder) -> Tensor:
    """S_0 = normalise(the linear form with h_g as keys and values)."""
    return normalise(linear_sum(encoder, encoder.global_tokens, encoder.global_tokens))


def naive_absorb(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor, rule: str, norm: str) -> Tensor:
    """S after the tokens (K_e, V_e) have left, by `rule`; `norm` as in `rules.absorb`. In the precision of S."""
    K_e, V_e = K_e.to(S.dtype), V_e.to(S.dtype)
    Q = projected_queries(encoder)
    w = encoder.log_write_scale.exp()
    if rule == "linear":
        S = S + linear_sum(encoder, K_e, V_e)
    elif rule == "decay":
        S = torch.sigmoid(encoder.decay_logit) * S + linear_sum(encoder, K_e, V_e)
    elif rule == "softmax":
        keys = torch.stack([projected(encoder.key_projection, rms(k)) for k in K_e])
        values = torch.stack([projected(encoder.value_projection, rms(v)) for v in V_e])
        rows = [torch.softmax(keys @ q / S.shape[1] ** 0.5, dim=0) @ values for q in Q]
        S = S + w * len(K_e) * torch.stack(rows)
    elif rule in ("gated", "delta"):
        for k, v in zip(K_e, V_e, strict=True):
            b = torch.sigmoid(encoder.gate @ torch.cat([rms(k), rms(v)]) + encoder.gate_bias + torch.log(w))
            a = unit(projected(encoder.value_projection, rms(v)))
            u = Q @ projected(encoder.key_projection, rms(k))
            S = S + b * torch.outer(u if rule == "gated" else u - S @ a, a)
    else:
        raise ValueError(f"no naive form of state rule {rule!r}")
    return normalise(S) if norm == "frobenius" else S
