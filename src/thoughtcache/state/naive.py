"""The equations of docs/design.md, section 2, as loops over tokens, one sequence, in the paper's letters.

The loop of each rule stands in its file (`rules/`, `naive_write`). Shapes: K_e, V_e [m, K] the evicted keys and values
of one layer and one sequence; S [G, R].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thoughtcache.state.encoder import ThoughtEncoder
from thoughtcache.state.norms import ORTHOGONAL_DAMPING
from thoughtcache.state.rules import state_rule
from thoughtcache.state.rules.naive_common import linear_sum


def normalise(S: Tensor) -> Tensor:
    """||S||_F = sqrt(min(G, R)); the zero state stays zero."""
    norm = torch.sqrt((S * S).sum())
    return S if norm == 0 else S * (min(S.shape) ** 0.5 / norm)


def spectral(S: Tensor) -> Tensor:
    """S / sigma_1. Powers of S^T S, squared in every step, end in the projector on its first direction."""
    if not S.count_nonzero():
        return S
    P = S.T @ S / (S * S).sum()
    for _ in range(32):
        P = P @ P
        P = P / P.trace()
    return S / torch.sqrt((P @ S.T @ S).trace())


def orthogonal(S: Tensor) -> Tensor:
    """sqrt(1 + d) S (S^T S + d m I)^(-1/2): the upper part of the polar factor of [S; sqrt(d m) I] (Newton, Schulz).

    X <- X (3 I - X^T X) / 2 takes every singular value between 0 and 1 to 1.
    """
    if not S.count_nonzero():
        return S
    if S.shape[0] < S.shape[1]:  # of S^T, whose smaller Gram matrix has no zero eigenvalues
        return orthogonal(S.T).T
    dtype, S = S.dtype, S.double()
    I = torch.eye(S.shape[1], dtype=S.dtype, device=S.device)  # noqa: E741 - the equation's letter
    size, d = (S * S).sum(), ORTHOGONAL_DAMPING
    X = torch.cat([S, torch.sqrt(d * size / S.shape[1]) * I]) / torch.sqrt((1 + d) * size)
    for _ in range(40):
        X = X @ (3 * I - X.T @ X) / 2
    polar: Tensor = (1 + d) ** 0.5 * X[: S.shape[0]]
    return polar.to(dtype)


NAIVE_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "frobenius": normalise,
    "spectral": spectral,
    "orthogonal": orthogonal,
    "none": lambda S: S,
}


def naive_initial_state(encoder: ThoughtEncoder, norm: str = "frobenius") -> Tensor:
    """S_0 = normalise(the linear form with h_g as keys and values)."""
    return NAIVE_NORMS[norm](linear_sum(encoder, encoder.global_tokens, encoder.global_tokens))


def naive_absorb(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor, rule: str, norm: str) -> Tensor:
    """S after the tokens (K_e, V_e) have left, by `rule`; `norm` as in `absorb`. In the precision of S."""
    S = state_rule(rule).naive_write(encoder, S, K_e.to(S.dtype), V_e.to(S.dtype))
    return NAIVE_NORMS[norm](S)
