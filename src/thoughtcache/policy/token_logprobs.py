"""The one place where hidden states become log-probabilities.

Axes: any leading axes, d model size, V vocabulary. Softmax in at least fp32. `scores.py` calls this chunk by chunk.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


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
    return chosen, entropy_of(distribution.detach())


def entropy_of(distribution: Float[Tensor, "*any V"]) -> Float[Tensor, "*any"]:
    """Entropy in nats of log-probabilities."""
    return -(distribution.exp() * distribution).sum(dim=-1)
