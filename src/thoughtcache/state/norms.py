"""How a thought state is normalised: by its norm, by its largest singular value, or all singular values to one.

Each form gives the identity back as it is, leaves the zero state at zero, and does not care for the state's scale.
`STATE_NORMS` is the table that configuration and tests read; the naive forms are in `naive.py`. Spectral and orthogonal
norms find singular vectors in fp64, which on a GPU waits for the device. No gradient goes through these vectors, which
turn freely where singular values are equal: it is written down by hand, and finite there as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from thoughtcache.state.rules.common import normalise

StateNorm = Literal["frobenius", "spectral", "orthogonal", "none"]
NormAt = Literal["write", "read"]

ORTHOGONAL_DAMPING = 1e-4
"""Share of the mean squared singular value that is added to each: a direction far below the others is left small."""


def spectral(state: Float[Tensor, "B G R"]) -> Float[Tensor, "B G R"]:
    """`S / sigma_1`: the largest singular value becomes 1.

    The gradient of `sigma_1` is `u v^T` of one pair of its singular vectors; where several singular values are the
    largest, that is one of its subgradients.
    """
    exact = state.double()
    left, _, right = torch.linalg.svd(exact.detach(), full_matrices=False)
    left, right = left[..., :1], right[..., :1, :].mT
    largest = left.mT @ exact @ right
    normalised: Tensor = exact / torch.where(largest > 0, largest, 1.0)
    return normalised.to(state.dtype)


def orthogonal(state: Float[Tensor, "B G R"]) -> Float[Tensor, "B G R"]:
    """`sqrt(1 + d) S (S^T S + d m I)^(-1/2)`, with `m` the mean squared singular value: all of them go to one.

    The polar factor `U V^T` of the state, damped by `d = ORTHOGONAL_DAMPING`, so that what was not written stays zero.
    """
    exact = state.double()
    mean = exact.square().sum(dim=(-2, -1)) / min(state.shape[-2:])
    # The zero state has no directions: any positive number will do.
    damping = torch.where(mean > 0, ORTHOGONAL_DAMPING * mean, 1.0)
    polar: Tensor = _DampedPolar.apply(exact, damping)  # type: ignore[no-untyped-call]
    return (math.sqrt(1 + ORTHOGONAL_DAMPING) * polar).to(state.dtype)


def unchanged(state: Float[Tensor, "B G R"]) -> Float[Tensor, "B G R"]:
    """The state itself."""
    return state


STATE_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "frobenius": normalise,
    "spectral": spectral,
    "orthogonal": orthogonal,
    "none": unchanged,
}


class _DampedPolar(torch.autograd.Function):
    """`S (S^T S + e I)^(-1/2)` of states [B, G, R] and positive numbers [B].

    With `S = U diag(s) V^T` it is `U diag(s / r) V^T`, `r = sqrt(s^2 + e)`. Its derivative multiplies the entries of
    `U^T dS V` with divided differences of `s / r`, those of the symmetric part and of the rest with different ones
    (Daleckii and Krein). In `q = (s_i r_j + s_j r_i) / (s_i + s_j)`, a mean of `r_i` and `r_j`, they are
    `e / (q r_i r_j)` and `q / (r_i r_j)`: finite where singular values are equal or zero.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, damping: Tensor) -> Tensor:
        left, values, right = torch.linalg.svd(states, full_matrices=False)
        roots = torch.sqrt(values.square() + damping[:, None])
        ctx.save_for_backward(left, values, right, roots, damping)
        polar: Tensor = (left * (values / roots).unsqueeze(-2)) @ right
        return polar

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, values, right, roots, damping = ctx.saved_tensors
        s_i, s_j, r_i, r_j = values[..., None], values[:, None], roots[..., None], roots[:, None]
        total = s_i + s_j
        mean = torch.where(total > 0, (s_i * r_j + s_j * r_i) / torch.where(total > 0, total, 1.0), r_i)
        turned = left.mT @ gradient @ right.mT
        even, odd = (turned + turned.mT) / 2, (turned - turned.mT) / 2
        inside = (damping[:, None, None] * even / mean + odd * mean) / (r_i * r_j)
        # What stands outside of the singular vectors of the shorter side.
        beside = gradient @ right.mT - left @ turned
        below = left.mT @ gradient - turned @ right
        found = left @ inside @ right + (beside / r_j) @ right + (left / r_j) @ below
        of_damping = -(turned.diagonal(dim1=-2, dim2=-1) * values / roots**3).sum(dim=-1) / 2
        return found, of_damping
