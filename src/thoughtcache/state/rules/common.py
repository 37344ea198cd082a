"""Arithmetic that every rule shares. Axes: B batch, H kv heads, E evicted tokens, D head size, K = H*D, G, R."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

RMS_EPSILON = 1e-6


def concat_heads(block: Float[Tensor, "B H E D"]) -> Float[Tensor, "B E K"]:
    """Heads side by side: one vector of size K = H*D per token."""
    batch, heads, tokens, size = block.shape
    return block.transpose(1, 2).reshape(batch, tokens, heads * size)


def rms_normalise(tokens: Float[Tensor, "*any K"]) -> Float[Tensor, "*any K"]:
    """Unit root mean square per token: the scale of cached keys differs by orders of magnitude between layers."""
    return tokens * torch.rsqrt(tokens.square().mean(dim=-1, keepdim=True) + RMS_EPSILON)


def unit(vectors: Float[Tensor, "*any R"]) -> Float[Tensor, "*any R"]:
    """Unit Euclidean norm along the last axis."""
    return vectors * torch.rsqrt(vectors.square().sum(dim=-1, keepdim=True) + RMS_EPSILON)


def normalise(state: Float[Tensor, "B G R"]) -> Float[Tensor, "B G R"]:
    """Scale to `||S||_F = sqrt(min(G, R))`, the norm of the identity; the zero state stays zero. Idempotent."""
    target = min(state.shape[-2:])
    squared = state.square().sum(dim=(-2, -1), keepdim=True)
    tiny = torch.finfo(state.dtype).tiny
    return state * torch.sqrt(target / squared.clamp_min(tiny))
