"""The parameters of the memory in attention space, of one decoder layer.

Matrices are kept at unit scale and divided by the square root of their columns when used, like those of the encoder
(docs/lab-log.md, "The encoder's scale"). Keys and queries come in at the scale of attention scores: multiplied by
`D ** -0.25`, so that the product of a key and a query is the score of the base model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from thoughtcache.state.attention.features import FEATURE_MAPS, unit
from thoughtcache.state.attention.writes import WRITE_RULES
from thoughtcache.state.parameters import StateParameters

MEMORIES = "lora_thought_memory"
"""Part of the names of the parameters of all memories in attention space."""
FEATURE_SCALE = 0.7
"""Scales the initial projections, so that features are neither alike for all keys nor one for each."""
GATE_BIAS = -2.0
"""At the start a token is written with strength `sigmoid(-2)`, about 0.12 (docs/lab-log.md, "a gate nearly shut")."""
DECAY_LOGIT = 6.0
"""At the start a token leaves `sigmoid(6)`, about 0.9975, of what was there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryShape:
    """The sizes of a memory in attention space.

    Attributes:
        kv_heads: H.
        query_heads: Q, a multiple of H.
        head_size: D.
        num_features: F.
        feature_map: a key of `FEATURE_MAPS`.
        write: a key of `WRITE_RULES`.
        read: "balanced", "joint" or "added", see `read.py`.
        initial_weight: how much the memory counts at the start against the window, positive.
    """

    kv_heads: int
    query_heads: int
    head_size: int
    num_features: int
    feature_map: str
    write: str
    read: str
    initial_weight: float

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(H, F, D + 1), of the state of one layer of one sequence."""
        return self.kv_heads, self.num_features, self.head_size + 1

    @property
    def state_floats(self) -> int:
        """Numbers of the state of one layer of one sequence: H F (D + 1)."""
        return math.prod(self.state_shape)

    @property
    def tokens_worth(self) -> float:
        """Tokens whose keys and values take as many numbers as the state."""
        return self.state_floats / (2 * self.kv_heads * self.head_size)

    @property
    def num_columns(self) -> int:
        """C of the projections that features are made of."""
        return FEATURE_MAPS[self.feature_map].num_columns(self.num_features)


class MemoryWeights(StateParameters):
    """Learnable parts of the memory of one layer.

    Args:
        layer_index: the decoder layer it belongs to.
        shape: its sizes.
        dtype: dtype of the parameters, at least fp32.

    Attributes:
        write_price: what a written token adds to the loss of a training that sets it; neither learned nor saved.
    """

    def __init__(self, *, layer_index: int, shape: MemoryShape, dtype: torch.dtype) -> None:
        super().__init__(layer_index, MEMORIES)
        self.shape = shape
        self.write_price = 0.0
        size, heads, queries = shape.head_size, shape.kv_heads, shape.query_heads
        columns = shape.num_columns
        # Keys and the queries that look for them start with the same features.
        start = torch.randn(heads, size, columns, dtype=dtype)
        self.key_features = nn.Parameter(start)
        self.query_features = nn.Parameter(start.repeat_interleave(queries // heads, dim=0).clone())
        self.gate = nn.Parameter(torch.zeros(heads, 2 * size, dtype=dtype))
        self.gate_bias = nn.Parameter(torch.full((heads,), GATE_BIAS, dtype=dtype))
        self.log_weight = nn.Parameter(torch.full((queries,), math.log(shape.initial_weight), dtype=dtype))
        if WRITE_RULES[shape.write].has_decay:
            self.decay = nn.Parameter(torch.full((heads,), DECAY_LOGIT, dtype=dtype))
        if shape.read == "added":
            self.output = nn.Parameter(torch.eye(size, dtype=dtype).expand(queries, size, size).clone())

    def tensors(self) -> MemoryTensors:
        """The tensors in at least fp32, ready for pure functions.

        Raises:
            ValueError: if this process holds a shard of the parameters only.
        """
        key, query = self.whole("key_features"), self.whole("query_features")
        scale = FEATURE_SCALE * self.shape.head_size**-0.25 / math.sqrt(key.shape[-1])
        return MemoryTensors(
            shape=self.shape,
            key_features=key * scale,
            query_features=query * scale,
            gate=self.whole("gate"),
            gate_bias=self.whole("gate_bias"),
            weight=self.whole("log_weight").exp(),
            decay=logsigmoid(self.whole("decay")).exp() if "decay" in self._parameters else None,
            output=self.whole("output") if "output" in self._parameters else None,
            write_price=self.write_price,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryTensors:
    """The parameters of a layer as its functions use them.

    Attributes:
        shape: the sizes.
        key_features: [H, D, C] projections of keys, all scales included.
        query_features: [Q, D, C] projections of queries.
        gate: [H, 2 D] of the write gate, for a key and a value.
        gate_bias: [H].
        weight: [Q] how much the memory counts.
        decay: [H] what a token leaves of the state, or None.
        output: [Q, D, D] of the added read, or None.
        write_price: see `write_cost.priced`.
    """

    shape: MemoryShape
    key_features: Float[Tensor, "H D C"]
    query_features: Float[Tensor, "Q D C"]
    gate: Float[Tensor, "H D2"]
    gate_bias: Float[Tensor, " H"]
    weight: Float[Tensor, " Q"]
    decay: Float[Tensor, " H"] | None
    output: Float[Tensor, "Q D D"] | None
    write_price: float = 0.0

    def features(self, projected: Float[Tensor, "*any C"]) -> Float[Tensor, "*any F"]:
        """Features of projected keys or queries.

        Without unit length they are multiplied by the square root of F. The product of a key's and a query's is then
        one for softmax features that say nothing, as the weight of a token with score zero is in attention.
        """
        found = FEATURE_MAPS[self.shape.feature_map].apply(projected)
        if WRITE_RULES[self.shape.write].has_unit_features:
            return unit(found)
        return found * math.sqrt(self.shape.num_features)
