"""A price on writing: while an adapter is trained, every token that is written to the memory adds to the loss.

Without it nothing tells the gate to stay shut for a token that does no harm yet, and what is harmless after eight
evictions drowns everything else after eighty (docs/lab-log.md, "a price on writing").

The price reaches the gradient where the strength is made, in whatever order the learner runs its segments; the value of
the loss that is reported is that of the task alone. Losses on load of experts in mixtures enter in the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def priced(strength: Float[Tensor, "B H E 1"], price: float) -> Float[Tensor, "B H E 1"]:
    """The same strengths; the gradient is that of a loss with `price` times their sum over tokens, mean over B and H.

    Args:
        strength: how strongly each token is written.
        price: in units of the loss; 0 leaves the gradient as it is.
    """
    if price == 0:
        return strength
    batch, heads = strength.shape[:2]
    priced_strength: Tensor = _Priced.apply(strength, price / (batch * heads))  # type: ignore[no-untyped-call]
    return priced_strength


class _Priced(torch.autograd.Function):
    """The identity, whose gradient is larger by a number."""

    @staticmethod
    def forward(ctx: Any, strength: Tensor, price: float) -> Tensor:
        ctx.price = price
        return strength.view_as(strength)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient + ctx.price, None
