"""The linear rule with a learned decay of the old state per layer; a control for forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from thoughtcache.state.rules.base import EncoderWeights, ExtraParameter, StateRule
from thoughtcache.state.rules.linear import linear_flops, linear_update
from thoughtcache.state.rules.naive_common import linear_sum

if TYPE_CHECKING:
    from thoughtcache.state.encoder import ThoughtEncoder


class DecayRule(StateRule):
    """`sigmoid(d) S + S'`, one decay per eviction; `d` is the logit of the share of the old state that is kept."""

    name: ClassVar[str] = "decay"
    parameters: ClassVar[tuple[ExtraParameter, ...]] = (ExtraParameter(name="decay_logit", initial=3.0),)

    @staticmethod
    def write(weights: EncoderWeights, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`sigmoid(d) S + S'`."""
        return weights.extra["decay_logit"].sigmoid() * state + linear_update(weights, keys, values)

    @staticmethod
    def naive_write(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor) -> Tensor:
        """`sigmoid(d) S + S'`."""
        return torch.sigmoid(encoder.get_parameter("decay_logit")) * S + linear_sum(encoder, K_e, V_e)

    @staticmethod
    def flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
        """Operations of `linear_update`; the decay is not counted."""
        return linear_flops(kv_size, num_evicted, rank, num_global_tokens)
