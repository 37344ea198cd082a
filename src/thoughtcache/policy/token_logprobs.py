"""The one place where hidden states become log-probabilities.

Axes: any leading axes, d model size, V vocabulary. Softmax in at least fp32. `scores.py` calls this chunk by chunk.
`scaled_log_softmax` reads like the equation; `token_logprobs` gives the same numbers for the tokens that were chosen,
with the gradient in closed form, so that at most three tensors of the size of the logits exist at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def scaled_log_softmax(hidden: Float[Tensor, "*any d"], head: nn.Module, temperature: float) -> Float[Tensor, "*any V"]:
    """Log-probabilities of the scored distribution over the vocabulary."""
    return scored_distribution(head_logits(hidden, head), temperature)


def head_logits(hidden: Float[Tensor, "*any d"], head: nn.Module) -> Float[Tensor, "*any V"]:
    """Logits in at least fp32."""
    logits: Tensor = head(hidden)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def scored_distribution(logits: Float[Tensor, "*any V"], temperature: float) -> Float[Tensor, "*any V"]:
    """Log-probabilities at a temperature."""
    return _scaled(logits, temperature).log_softmax(dim=-1)


def token_logprobs(
    hidden: Float[Tensor, "*any d"], targets: Int[Tensor, "*any"], head: nn.Module, temperature: float
) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """Log-probability of each target, and the entropy (nats, without gradient) of its distribution."""
    logits = _scaled(head_logits(hidden, head), temperature)
    chosen, entropy = _ChosenLogProbs.apply(logits, targets)  # type: ignore[no-untyped-call]
    return chosen, entropy


def entropy_of(distribution: Float[Tensor, "*any V"]) -> Float[Tensor, "*any"]:
    """Entropy in nats of log-probabilities."""
    return -(distribution.exp() * distribution).sum(dim=-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


class _ChosenLogProbs(torch.autograd.Function):
    """`log p_y = x_y - logsumexp(x)` with `d log p_y / d x = onehot(y) - p`; entropy `logsumexp(x) - p . x`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        normaliser = logits.logsumexp(dim=-1, keepdim=True)
        probabilities = (logits - normaliser).exp_()
        chosen = (logits.gather(-1, targets.unsqueeze(-1)) - normaliser).squeeze(-1)
        # A batched product of vectors: an elementwise one would need another tensor of the size of the logits.
        expected = (probabilities.unsqueeze(-2) @ logits.unsqueeze(-1)).squeeze(-1)
        entropy = (normaliser - expected).squeeze(-1)
        ctx.save_for_backward(probabilities, targets)
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _entropy: Tensor) -> tuple[Tensor, None]:
        probabilities, targets = ctx.saved_tensors
        weight = gradient.unsqueeze(-1)
        found = probabilities * -weight
        found.scatter_add_(-1, targets.unsqueeze(-1), weight)
        return found, None
