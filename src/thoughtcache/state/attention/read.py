"""Writing to and reading from the memory in attention space: what all rules share. Pure functions.

Axes: B rows, H key-value heads, Q query heads, E evicted tokens, T new tokens, F features, D head size, C = D + 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from thoughtcache.state.attention.weights import MemoryShape, MemoryTensors
from thoughtcache.state.attention.write_cost import priced
from thoughtcache.state.attention.writes import WRITE_RULES
from thoughtcache.state.precision import state_precision

READS = ("balanced", "added", "joint")


def write_memory(
    tensors: MemoryTensors,
    state: Float[Tensor, "#B H F C"],
    keys: Float[Tensor, "B H E D"],
    values: Float[Tensor, "B H E D"],
) -> Float[Tensor, "B H F C"]:
    """The memory of a layer after these tokens, in their order in time, have left.

    Args:
        tensors: the parameters of the layer.
        state: the state before; a batch of one is broadcast.
        keys: their keys, un-rotated or as cached.
        values: their values.
    """
    dtype = state.dtype
    with state_precision(state.device.type):
        keys, values = keys.to(dtype), values.to(dtype)
        strength, features = _strength_and_features(tensors, keys, values)
        contents = pad(values, (0, 1), value=1.0)
        rule = WRITE_RULES[tensors.shape.write]
        before = state.expand(keys.shape[0], -1, -1, -1)
        return rule.write(before, strength, features, contents, tensors.decay)


def token_weights(
    tensors: MemoryTensors, keys: Float[Tensor, "B H E D"], values: Float[Tensor, "B H E D"]
) -> Float[Tensor, "B H E"]:
    """How much of each token is written: its gate times the mass of its features, `b sum_f |phi_f|`; for studies.

    Under `memory_write="linear"` with features that are positive it is what the token adds to the last column of the
    state, summed over features.
    """
    dtype = tensors.gate.dtype
    with state_precision(keys.device.type):
        strength, features = _strength_and_features(tensors, keys.to(dtype), values.to(dtype))
        return (strength * features.abs()).sum(dim=-1)


def _strength_and_features(
    tensors: MemoryTensors, keys: Float[Tensor, "B H E D"], values: Float[Tensor, "B H E D"]
) -> tuple[Float[Tensor, "B H E 1"], Float[Tensor, "B H E F"]]:
    """How strongly tokens are written, and the features of their keys."""
    features = tensors.features(torch.einsum("bhed,hdc->bhec", keys, tensors.key_features))
    gate = torch.cat([keys, values], dim=-1) @ tensors.gate.unsqueeze(-1)
    return priced(torch.sigmoid(gate + tensors.gate_bias[:, None, None]), tensors.write_price), features


def read_memory(
    tensors: MemoryTensors,
    state: Float[Tensor, "#B H F C"],
    queries: Float[Tensor, "B Q T D"],
    output: Float[Tensor, "B T Q D"],
    window: Float[Tensor, "B T Q 2"] | None = None,
) -> Float[Tensor, "B T Q D"]:
    """The attention output of a layer with what its memory adds.

    "balanced": `(o + w phi(q)^T M) / (1 + w phi(q)^T z)`, one denominator in which everything inside the window counts
    one. "joint": `(sum_j e^(s_j) v_j + w phi(q)^T M) / (sum_j e^(s_j) + w phi(q)^T z)`, the denominator of attention
    itself (LESS, arXiv 2402.09398). "added": `o + w (phi(q)^T M) W_o`, which features that may be negative need. Where
    nothing was written, all are the output of the window.

    Args:
        tensors: the parameters of the layer.
        state: the state of each row, or one for all.
        queries: queries, un-rotated or as they are.
        output: output of attention over the window, per query head.
        window: under "joint", the shares of a key of score zero and of the window beside it.
    """
    shape, dtype = tensors.shape, state.dtype
    batch, num_queries, tokens, _ = queries.shape
    with state_precision(state.device.type):
        # Not a broadcast product, which would copy the projections for every row.
        features = tensors.features(torch.einsum("bqtd,qdc->bqtc", queries.to(dtype), tensors.query_features))
        grouped = features.reshape(batch, shape.kv_heads, -1, shape.num_features)
        found = (grouped @ state).view(batch, num_queries, tokens, -1).transpose(1, 2)  # [B, T, Q, C]
        found = found * tensors.weight[:, None]
        content, share = found[..., :-1], found[..., -1:]
        if window is not None:  # both parts of the fraction over 1 + sum_j e^(s_j)
            zero, shared = window[..., :1].to(dtype), window[..., 1:].to(dtype)
            total = shared + zero * share.clamp_min(0.0)
            # Scores so far below zero that nothing is left of the window, and nothing in the memory.
            mixed = (output.to(dtype) + zero * content) / total.clamp_min(torch.finfo(dtype).tiny)
        elif tensors.output is None:
            mixed = (output.to(dtype) + content) / (1.0 + share.clamp_min(0.0))
        else:
            mixed = output.to(dtype) + torch.einsum("btqd,qde->btqe", content, tensors.output)
    return mixed.to(output.dtype)


def write_flops(shape: MemoryShape, num_evicted: int) -> int:
    """Operations of `write_memory` for one sequence: projections, gates, and the rule."""
    features = 2 * num_evicted * shape.head_size * shape.num_columns
    gates = 2 * num_evicted * 2 * shape.head_size
    rule = WRITE_RULES[shape.write].flops(num_evicted, shape.num_features, shape.head_size + 1)
    return shape.kv_heads * (features + gates + rule)


def read_flops(shape: MemoryShape) -> int:
    """Operations of `read_memory` for one token: projections, what is found, and the matrix of the added read."""
    features = 2 * shape.head_size * shape.num_columns
    found = 2 * shape.num_features * (shape.head_size + 1)
    output = 2 * shape.head_size * shape.head_size if shape.read == "added" else 0
    return shape.query_heads * (features + found + output)
