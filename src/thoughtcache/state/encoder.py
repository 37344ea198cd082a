"""The parameters behind the thought state of one decoder layer.

Sizes: K = kv heads x head size (heads concatenated), R rank, G global tokens. Initial scales follow DESIGN section 3
(write scale 0.1: 1.0 trained to 9 % instead of 61 % in the prototype). Matrices are kept at unit scale and divided by
`sqrt(K)` when used: kept at `1 / sqrt(K)`, one Adam step moves them too far (docs/lab-log.md, "The encoder's scale").
No parameter has 0 dimensions, which FSDP refuses: scalars are kept as [1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from thoughtcache.state.precision import state_precision

GATED_RULES = ("gated", "delta")
SCALARS = ("log_write_scale", "gate_bias", "decay_logit")
"""Parameters that are one number, kept as [1]."""
SHARDED = (
    "the parameters of the thought encoder are sharded, but they are read outside of the layer that FSDP or ZeRO-3 "
    "gathers; keep the adapter whole on every process (DDP, ZeRO-2, or fully_shard with ignored_params for the "
    "parameters named lora_thought_encoder)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderWeights:
    """The encoder's tensors in the state's precision, ready for the pure functions in `rules/`.

    Attributes:
        queries: [G, R] projected global queries, `q_g W_Q^T / sqrt(K)`.
        key_projection: [R, K] `W_K / sqrt(K)`.
        value_projection: [R, K] `W_V / sqrt(K)`.
        global_tokens: [G, K] `h_g`, learnable keys and values of the initial state.
        log_write_scale: [] log of the write scale `w`.
        gate: [2 K] `w_g`, for the gated rules.
        gate_bias: [] `b_0`, for the gated rules.
        decay_logit: [] logit of the share of the old state that is kept, for the decay rule.
    """

    queries: Float[Tensor, "G R"]
    key_projection: Float[Tensor, "R K"]
    value_projection: Float[Tensor, "R K"]
    global_tokens: Float[Tensor, "G K"]
    log_write_scale: Float[Tensor, ""]
    gate: Float[Tensor, " K2"] | None
    gate_bias: Float[Tensor, ""] | None
    decay_logit: Float[Tensor, ""] | None


class ThoughtEncoder(nn.Module):
    """Learnable parts of the thought state of one layer.

    Args:
        layer_index: the decoder layer it belongs to.
        kv_size: K, kv heads times head size.
        num_global_tokens: G.
        rank: R.
        rule: state rule; decides which optional parameters exist.
        write_scale: initial write scale `w`, positive.
        dtype: dtype of the parameters, at least fp32.

    Casting a model to half precision (`model.to(torch.bfloat16)`, `model.half()`) moves its encoders and leaves them in
    fp32: what they accumulate over hundreds of evictions does not survive 8 bits.
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
        super().__init__()
        self.layer_index = layer_index

        def normal(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, kv_size, dtype=dtype))

        self.global_queries = normal(num_global_tokens)
        self.global_tokens = normal(num_global_tokens)
        self.query_projection = normal(rank)
        self.key_projection = normal(rank)
        self.value_projection = normal(rank)
        self.log_write_scale = nn.Parameter(torch.tensor([math.log(write_scale)], dtype=dtype))
        if rule in GATED_RULES:
            self.gate = nn.Parameter(torch.zeros(2 * kv_size, dtype=dtype))
            self.gate_bias = nn.Parameter(torch.zeros(1, dtype=dtype))
        if rule == "decay":
            self.decay_logit = nn.Parameter(torch.tensor([3.0], dtype=dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ThoughtEncoder:
        """What every move and cast of a module comes down to; here no tensor ends below fp32."""

        def at_least_fp32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            wanted = torch.promote_types(moved.dtype, torch.float32)
            # From the tensor itself where its precision was lost, not from the rounded copy.
            return moved if moved.dtype == wanted else tensor.to(device=moved.device, dtype=wanted)

        super()._apply(at_least_fp32, recurse)  # type: ignore[no-untyped-call]
        return self

    def weights(self) -> EncoderWeights:
        """The tensors in at least fp32, under autocast too, scalars without dimensions.

        What is kept in less is cast, with gradient.

        Raises:
            ValueError: if this process holds a shard of the parameters only.
        """

        def cast(name: str) -> Tensor | None:
            value = self._parameters.get(name)
            if value is None:
                return None
            if isinstance(value, DTensor) or not value.numel():
                raise ValueError(SHARDED)
            tensor = value.squeeze(0) if name in SCALARS else value
            return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

        def need(name: str) -> Tensor:
            value = cast(name)
            assert value is not None, name
            return value

        scale = 1.0 / math.sqrt(need("key_projection").shape[1])
        with state_precision(self.global_queries.device.type):
            queries = need("global_queries") @ need("query_projection").T * scale
        return EncoderWeights(
            queries=queries,
            key_projection=need("key_projection") * scale,
            value_projection=need("value_projection") * scale,
            global_tokens=need("global_tokens"),
            log_write_scale=need("log_write_scale"),
            gate=cast("gate"),
            gate_bias=cast("gate_bias"),
            decay_logit=cast("decay_logit"),
        )


def scalars_as_vectors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which scalars of encoders that were saved without dimensions are [1], as they are kept now."""
    return {
        name: value.reshape(1) if value.ndim == 0 and name.rpartition(".")[2] in SCALARS else value
        for name, value in state_dict.items()
    }
