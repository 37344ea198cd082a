"""The linear rule with a learned decay of the old state per layer; a control for forgetting."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.encoder import EncoderWeights
from thoughtcache.state.rules.linear import linear_update


def decay_write(
    weights: EncoderWeights,
    state: Float[Tensor, "B G R"],
    keys: Float[Tensor, "B E K"],
    values: Float[Tensor, "B E K"],
) -> Float[Tensor, "B G R"]:
    """`sigmoid(d) S + S'`, one decay per eviction."""
    assert weights.decay_logit is not None
    return weights.decay_logit.sigmoid() * state + linear_update(weights, keys, values)
