"""The one place where hidden states become log-probabilities.

Axes: N rows of hidden states (batch and positions flattened), d model size, V vocabulary. Softmax in at least fp32.
Chunks over rows are recomputed in the backward pass, so that no `[N, V]` tensor exists beyond one chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**23
RowFunction = Callable[..., tuple[Tensor, ...]]


def scaled_log_softmax(hidden: Float[Tensor, "*any d"], head: nn.Module, temperature: float) -> Float[Tensor, "*any V"]:
    """Log-probabilities of the scored distribution over the vocabulary."""
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    distribution: Tensor = logits.log_softmax(dim=-1)
    return distribution


def token_logprobs(
    hidden: Float[Tensor, "*any d"], targets: Int[Tensor, "*any"], head: nn.Module, temperature: float
) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """Log-probability of each target, and the entropy (nats, without gradient) of its distribution."""
    distribution = scaled_log_softmax(hidden, head, temperature)
    chosen = distribution.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    detached = distribution.detach()
    entropy = -(detached.exp() * detached).sum(dim=-1)
    return chosen, entropy


def in_chunks(function: RowFunction, vocabulary: int, *rows: Tensor) -> tuple[Tensor, ...]:
    """`function` over leading rows in chunks of about `CHUNK_ELEMENTS / vocabulary` rows, recomputed in backward.

    Args:
        function: takes row chunks of every tensor in `rows`, returns a tuple of [chunk] tensors.
        vocabulary: V, which sets the size of a chunk.
        rows: tensors with the same leading size.
    """
    total = rows[0].shape[0]
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    if total <= size:
        return function(*rows)
    chunks = []
    for start in range(0, total, size):
        part = [row[start : start + size] for row in rows]
        if torch.is_grad_enabled():
            chunks.append(checkpoint(function, *part, use_reentrant=False))
        else:
            chunks.append(function(*part))
    return tuple(torch.cat(column) for column in zip(*chunks, strict=True))
