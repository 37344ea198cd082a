"""The memory in attention space in loops over tokens and heads, one sequence, in the letters of docs/design.md."""

from __future__ import annotations

import torch
from torch import Tensor

from thoughtcache.state.attention.features import FEATURE_MAPS, TINY
from thoughtcache.state.attention.weights import FEATURE_SCALE, MemoryWeights
from thoughtcache.state.attention.writes import WRITE_RULES


def naive_features(weights: MemoryWeights, W: Tensor, x: Tensor) -> Tensor:
    """phi(x) [F] of a key or query x [D], by its projection W [D, C]."""
    shape, rule = weights.shape, WRITE_RULES[weights.shape.write]
    x = x.to(W.dtype) / shape.head_size**0.25
    y = FEATURE_SCALE * sum((x[d] * W[d] for d in range(len(x))), start=torch.zeros_like(W[0])) / W.shape[1] ** 0.5
    phi = FEATURE_MAPS[shape.feature_map].naive(y)
    return phi / ((phi * phi).sum() + TINY).sqrt() if rule.has_unit_features else phi * shape.num_features**0.5


def naive_write(
    weights: MemoryWeights, S: Tensor, keys: list[list[Tensor | None]], values: list[list[Tensor | None]]
) -> Tensor:
    """S [H, F, D + 1] after tokens with keys [m][H] of [D] and values [m][H] of [D] have left, one after the other.

    A head whose keys are None evicts nothing, and its part of S stays.
    """
    rule, heads = WRITE_RULES[weights.shape.write], list(S)
    for k_token, v_token in zip(keys, values, strict=True):
        for h in range(len(heads)):
            k, v = k_token[h], v_token[h]
            if k is None or v is None:
                continue
            k, v = k.to(S.dtype), v.to(S.dtype)
            phi = naive_features(weights, weights.key_features[h], k)
            b = 1 / (1 + (-(weights.gate[h] * torch.cat([k, v])).sum() - weights.gate_bias[h]).exp())
            a = 1 / (1 + (-weights.decay[h]).exp()) if rule.has_decay else None
            heads[h] = rule.naive_write(heads[h], b, phi, torch.cat([v, torch.ones_like(v[:1])]), a)
    return torch.stack(heads)


def naive_read(weights: MemoryWeights, S: Tensor, q: Tensor, o: Tensor, mass: list[Tensor] | None = None) -> Tensor:
    """Output [Q, D] of one token with what its memory S [H, F, D + 1] adds to o [Q, D], for queries q [Q, D].

    `mass` is `sum_j e^(s_j)` of the window for every query head, where the read asks for it.
    """
    shape = weights.shape
    group, heads = shape.query_heads // shape.kv_heads, []
    for i in range(shape.query_heads):
        M, z = S[i // group, :, :-1], S[i // group, :, -1]
        phi = naive_features(weights, weights.query_features[i], q[i])
        w = weights.log_weight[i].exp()
        if shape.read == "added":
            heads.append(o[i].to(S.dtype) + w * (phi @ M) @ weights.output[i])
        elif mass is not None:
            e = mass[i].to(S.dtype)
            heads.append((e * o[i].to(S.dtype) + w * (phi @ M)) / (e + w * (phi @ z).clamp_min(0)))
        else:
            heads.append((o[i].to(S.dtype) + w * (phi @ M)) / (1 + w * (phi @ z).clamp_min(0)))
    return torch.stack(heads).to(o.dtype)
