"""The equations of docs/design.md, section 2, as loops over tokens, one sequence, in the paper's letters.

The loop of each rule stands in its file (`rules/`, `naive_write`). Shapes: K_e, V_e [m, K] the evicted keys and values
of one layer and one sequence; S [G, R].
"""

from __future__ import annotations

import torch
from torch import Tensor

from thoughtcache.state.encoder import ThoughtEncoder
from thoughtcache.state.rules import state_rule
from thoughtcache.state.rules.naive_common import linear_sum


def normalise(S: Tensor) -> Tensor:
    """||S||_F = sqrt(min(G, R)); the zero state stays zero."""
    norm = torch.sqrt((S * S).sum())
    return S if norm == 0 else S * (min(S.shape) ** 0.5 / norm)


def naive_initial_state(encoder: ThoughtEncoder) -> Tensor:
    """S_0 = normalise(the linear form with h_g as keys and values)."""
    return normalise(linear_sum(encoder, encoder.global_tokens, encoder.global_tokens))


def naive_absorb(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor, rule: str, norm: str) -> Tensor:
    """S after the tokens (K_e, V_e) have left, by `rule`; `norm` as in `absorb`. In the precision of S."""
    S = state_rule(rule).naive_write(encoder, S, K_e.to(S.dtype), V_e.to(S.dtype))
    return normalise(S) if norm == "frobenius" else S
