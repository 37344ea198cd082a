"""The thought state before any eviction, and after one: what all rules share around their write."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.norms import STATE_NORMS, StateNorm
from thoughtcache.state.precision import state_precision
from thoughtcache.state.rules import EncoderWeights, state_rule
from thoughtcache.state.rules.common import concat_heads, rms_normalise
from thoughtcache.state.rules.linear import linear_update


def initial_state(weights: EncoderWeights, *, norm: StateNorm = "frobenius") -> Float[Tensor, "1 G R"]:
    """`S_0`: the linear form with the global tokens as keys and values, normalised (paper, method section).

    Args:
        weights: the encoder's tensors of this layer.
        norm: a key of `STATE_NORMS`.
    """
    with state_precision(weights.global_tokens.device.type):
        tokens = rms_normalise(weights.global_tokens).unsqueeze(0)
        return STATE_NORMS[norm](linear_update(weights, tokens, tokens))


def absorb(
    weights: EncoderWeights,
    state: Float[Tensor, "#B G R"],
    evicted_keys: Float[Tensor, "B H E D"],
    evicted_values: Float[Tensor, "B H E D"],
    *,
    rule: str,
    norm: StateNorm,
) -> Float[Tensor, "B G R"]:
    """The state after one eviction.

    Args:
        weights: the encoder's tensors of this layer.
        state: state before; a batch of 1 is broadcast.
        evicted_keys: keys that leave, as cached (rotated).
        evicted_values: values that leave.
        rule: a key of `STATE_RULES`.
        norm: a key of `STATE_NORMS`: "frobenius" keeps `||S||_F = sqrt(min(G, R))`; "none" leaves the sum as it is.

    Raises:
        ValueError: if the rule is unknown.
    """
    dtype = state.dtype
    with state_precision(state.device.type):
        keys = rms_normalise(concat_heads(evicted_keys).to(dtype))
        values = rms_normalise(concat_heads(evicted_values).to(dtype))
        updated = state_rule(rule).write(weights, state.expand(keys.shape[0], -1, -1), keys, values)
        return STATE_NORMS[norm](updated)


def token_weights(
    weights: EncoderWeights,
    evicted_keys: Float[Tensor, "B H E D"],
    evicted_values: Float[Tensor, "B H E D"],
    *,
    rule: str,
) -> Float[Tensor, "B E"]:
    """How much each token counts in what is written, summed over the global queries; for studies.

    Args:
        weights: the encoder's tensors of this layer.
        evicted_keys: keys that leave, as cached (rotated).
        evicted_values: values that leave.
        rule: a key of `STATE_RULES`.
    """
    dtype = weights.queries.dtype
    with state_precision(evicted_keys.device.type):
        keys = rms_normalise(concat_heads(evicted_keys).to(dtype))
        values = rms_normalise(concat_heads(evicted_values).to(dtype))
        return state_rule(rule).token_weights(weights, keys, values).sum(dim=-1)
