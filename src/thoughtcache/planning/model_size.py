"""Sizes and parameter counts of a model and its adapter, from the configurations alone.

Letters of the attributes: d hidden size, I inner size of the MLP, V vocabulary. Proof: tests/unit/test_plan_sizes.py,
against the parameters of the models themselves on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from thoughtcache.adapter.state_parameters import num_parameters
from thoughtcache.config import ThoughtConfig
from thoughtcache.planning.flops import linear_shapes, targeted_linears

QK_NORM_TYPES = ("qwen3",)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Numbers of a decoder.

    Attributes:
        layers: decoder layers.
        hidden: d, model size.
        inner: I, inner size of the MLP.
        heads: query heads.
        head_size: size of one head.
        query: query heads times head size.
        kv: K, kv heads times head size.
        vocabulary: V.
        has_qk_norm: whether queries and keys are normalised per head.
        linear_parameters: weights of the linears of all decoder layers, without biases.
        other_parameters: embeddings, head, norms and biases.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    head_size: int
    query: int
    kv: int
    vocabulary: int
    has_qk_norm: bool
    linear_parameters: int
    other_parameters: int

    @property
    def head_counts(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, and the size of one."""
        return self.heads, self.kv // self.head_size, self.head_size

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        return self.linear_parameters + self.other_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSize:
    """Trainable parameters of an adapter.

    Attributes:
        factors: the low-rank factors of all targeted linears.
        encoders: what makes the thought states, or writes and reads the memory; 0 for plain LoRA.
    """

    factors: int
    encoders: int

    @property
    def parameters(self) -> int:
        """All trainable parameters."""
        return self.factors + self.encoders


def model_size(config: PretrainedConfig) -> ModelSize:
    """Read the sizes of a supported model."""
    shapes = linear_shapes(config)
    query, kv = shapes["self_attn.q_proj"][1], shapes["self_attn.k_proj"][1]
    head_size = query // config.num_attention_heads
    has_qk_norm = config.model_type in QK_NORM_TYPES
    biases = _biased_outputs(config, shapes)
    norms = 2 * config.hidden_size + (2 * head_size if has_qk_norm else 0)
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    layers = config.num_hidden_layers
    return ModelSize(
        layers=layers,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        head_size=head_size,
        query=query,
        kv=kv,
        vocabulary=config.vocab_size,
        has_qk_norm=has_qk_norm,
        linear_parameters=layers * sum(inputs * outputs for inputs, outputs in shapes.values()),
        other_parameters=embeddings + config.hidden_size + layers * (norms + biases),
    )


def adapter_size(config: PretrainedConfig, thought: ThoughtConfig) -> AdapterSize:
    """Count the parameters that an adapter adds."""
    shapes = linear_shapes(config)
    rank, columns = thought.r, thought.num_state_rows
    factors = sum(
        rank * shapes[name][0] + columns * shapes[name][1]
        for names in targeted_linears(config, thought.target_modules)
        for name in names
    )
    encoder = num_parameters(thought, model_size(config).head_counts)
    return AdapterSize(factors=factors, encoders=config.num_hidden_layers * encoder)


def _biased_outputs(config: Any, shapes: dict[str, tuple[int, int]]) -> int:
    """Bias entries of the linears of one decoder layer."""
    biased: set[str] = set()
    if config.model_type == "qwen2":
        biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    elif getattr(config, "attention_bias", False):
        biased = {name for name in shapes if name.startswith("self_attn")}
    if getattr(config, "mlp_bias", False):
        biased |= {name for name in shapes if name.startswith("mlp")}
    return sum(shapes[name][1] for name in biased)
