"""The parameters behind the thought state of one decoder layer.

Sizes: K = kv heads x head size (heads concatenated), R rank, G global tokens. Initial scales follow DESIGN section 3
(write scale 0.1: 1.0 trained to 9 % instead of 61 % in the prototype). Matrices are kept at unit scale and divided by
`sqrt(K)` when used: kept at `1 / sqrt(K)`, one Adam step moves them too far (docs/lab-log.md, "The encoder's scale").
No parameter has 0 dimensions, which FSDP refuses: scalars are kept as [1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from thoughtcache.state.parameters import StateParameters
from thoughtcache.state.precision import state_precision
from thoughtcache.state.rules import STATE_RULES, EncoderWeights, state_rule

ENCODERS = "lora_thought_encoder"
"""Part of the names of the parameters of all encoders."""


def scalar_names() -> set[str]:
    """Parameters that are one number, of all rules; they are kept as [1]."""
    extra = {one.name for rule in STATE_RULES.values() for one in rule.parameters if one.size is None}
    return {"log_write_scale"} | extra


class ThoughtEncoder(StateParameters):
    """Learnable parts of the thought state of one layer.

    Args:
        layer_index: the decoder layer it belongs to.
        kv_size: K, kv heads times head size.
        num_global_tokens: G.
        rank: R.
        rule: state rule; decides which optional parameters exist.
        write_scale: initial write scale `w`, positive.
        dtype: dtype of the parameters, at least fp32.
    """

    def __init__(
        self,
        *,
        layer_index: int,
        kv_size: int,
        num_global_tokens: int,
        rank: int,
        rule: str,
        write_scale: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(layer_index, ENCODERS)

        def normal(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, kv_size, dtype=dtype))

        self.global_queries = normal(num_global_tokens)
        self.global_tokens = normal(num_global_tokens)
        self.query_projection = normal(rank)
        self.key_projection = normal(rank)
        self.value_projection = normal(rank)
        self.log_write_scale = nn.Parameter(torch.tensor([math.log(write_scale)], dtype=dtype))
        self.rule = state_rule(rule)
        for extra in self.rule.parameters:
            value = torch.full((extra.count(kv_size),), extra.initial, dtype=dtype)
            self.register_parameter(extra.name, nn.Parameter(value))

    def weights(self) -> EncoderWeights:
        """The tensors in at least fp32, under autocast too, scalars without dimensions.

        What is kept in less is cast, with gradient.

        Raises:
            ValueError: if this process holds a shard of the parameters only.
        """
        cast = self.whole
        scale = 1.0 / math.sqrt(self.key_projection.shape[-1])
        with state_precision(self.global_queries.device.type):
            queries = cast("global_queries") @ cast("query_projection").T * scale
        return EncoderWeights(
            queries=queries,
            key_projection=cast("key_projection") * scale,
            value_projection=cast("value_projection") * scale,
            global_tokens=cast("global_tokens"),
            log_write_scale=cast("log_write_scale").squeeze(0),
            extra={
                one.name: cast(one.name).squeeze(0) if one.size is None else cast(one.name)
                for one in self.rule.parameters
            },
        )


def scalars_as_vectors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which scalars of encoders that were saved without dimensions are [1], as they are kept now."""
    scalars = scalar_names()
    return {
        name: value.reshape(1) if value.ndim == 0 and name.rpartition(".")[2] in scalars else value
        for name, value in state_dict.items()
    }
