"""Tiny random models in which nothing is zero by accident.

Weights are drawn ten times wider than a real initialisation: with std 0.02 a tiny model is nearly uniform over its
vocabulary and hardly reads its cache, so that parity tests would pass whatever the cache holds. `lora_B` and the gates
start at zero in a real adapter; here they are random for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import thoughtcache as tc

VOCABULARY = 29
POSITIONS = 160
INITIAL_STD = 0.2
ADAPTER_STD = 0.2
CONTROLS: dict[str, dict[str, Any]] = {
    "zero state": {"initial_state": "zero"},
    "identity state": {"initial_state": "identity", "r": 5},
    "global only": {"absorb": False},
    "plain LoRA with a window": {"initial_state": "identity", "absorb": False, "r": 5},
    "full cache": {"window": None},
    "window of the prompt": {"window": "prompt"},
    "state without norm": {"state_norm": "none", "write_scale": 0.05},
    "spectral norm": {"state_norm": "spectral", "read_start": 0.5, "encoder_start": "base"},
    "orthogonal state": {"state_norm": "orthogonal"},
    "norm when read, from zero": {"state_norm_at": "read", "initial_state": "zero"},
    "spectral norm when read": {"state_norm": "spectral", "state_norm_at": "read", "state_rule": "delta"},
    "orthogonal when read": {"state_norm": "orthogonal", "state_norm_at": "read", "initial_state": "zero"},
}
"""Options of the tiny adapter, around its default."""

_FAMILIES: dict[str, tuple[Callable[..., Any], Callable[..., PreTrainedModel], dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 6}),  # heads x head size differs from the hidden size
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, {"no_rope_layers": [1, 0]}),  # the last layer has no positions
}
FAMILIES = tuple(_FAMILIES)


def tiny_base(
    family: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random causal model of two layers, grouped-query attention and an odd vocabulary, in evaluation mode."""
    make_config, make_model, own = _FAMILIES[family]
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": INITIAL_STD,
        "tie_word_embeddings": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        **own,
        **overrides,
    }
    torch.manual_seed(seed)
    return make_model(make_config(**settings)).to(dtype).eval()


def randomise_adapter(model: nn.Module, seed: int = 1) -> None:
    """Give every adapter parameter that starts at zero a random value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and not parameter.count_nonzero():
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(drawn * ADAPTER_STD)


def adapt(base: PreTrainedModel, *, randomise: bool = True, seed: int = 1, **config: Any) -> peft.PeftModel:
    """`base` with a thought adapter: G = 5, R = 3 (no power of two), window 5, one token leaves at a time."""
    settings = {"r": 3, "lora_alpha": 6, "window": 5, **config}
    if config.get("memory") != "attention":
        settings = {"num_global_tokens": 5, "write_scale": 0.5, **settings}
    torch.manual_seed(seed)
    model = peft.get_peft_model(base, tc.ThoughtConfig(**settings))
    if randomise:
        randomise_adapter(model, seed)
    return model.eval()


def tiny_model(
    family: str = "llama", *, dtype: torch.dtype = torch.float64, base: dict[str, Any] | None = None, **config: Any
) -> peft.PeftModel:
    """A tiny base with a random thought adapter; `base` overrides the base's, `config` the adapter's settings."""
    return adapt(tiny_base(family, dtype=dtype, **(base or {})), **config)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def use_norms_without_fp32(model: nn.Module) -> None:
    """Exact norms in fp64.

    transformers normalises in fp32 whatever the model's dtype. Two orders of the same sums then differ by 1e-16 until a
    number falls on the other side of an fp32 step, and by 1e-8 from there on; a finite difference drowns in it anyway.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                exact = nn.RMSNorm(child.weight.numel(), eps=child.variance_epsilon, dtype=torch.float64)
                exact.weight = child.weight
                setattr(module, name, exact)
