"""The start of `W_K` and `W_V` from the base model: what is kept of a key is what the base's keys vary along."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def leading_directions(weight: Float[Tensor, "K d_in"], count: int) -> Float[Tensor, "count K"]:
    """The first left singular vectors of a projection, as rows of norm `sqrt(K)`, the unit scale of the encoder.

    Their signs are fixed: the largest entry of each is positive. Computed from `W W^T` in at least fp32.

    Args:
        weight: weight of a linear that makes keys or values of hidden states; heads side by side.
        count: how many directions.

    Raises:
        ValueError: if there are fewer.
    """
    size, available = weight.shape[0], min(weight.shape)
    if count > available:
        raise ValueError(
            f"encoder_start='base' takes r={count} directions of keys and values, and the base model has {available}; "
            f"lower r to at most {available}, or use encoder_start='random'"
        )
    exact = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    vectors = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, size - count :].flip(-1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    directions: Tensor = math.sqrt(size) * (vectors * largest.sign()).T
    return directions
