"""Models from a configuration with random weights, adapters without zeros, and prompts of unequal lengths."""

from __future__ import annotations

from typing import Any

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

import thoughtcache as tc
from benchmarks.gpu.check import Context
from benchmarks.sampler.models import randomised

RANK = 32
POSITIONS = 2**17
CONFIGS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    # The shape of Qwen2.5-0.5B.
    "0.5b": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2,
        },
    ),
    "tiny": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1,
        },
    ),
}  # fmt: skip


def make_base(context: Context, dtype: torch.dtype, *, layers: int | None = None) -> PreTrainedModel:
    """A base that declares no end of sequence.

    Args:
        context: where and which.
        dtype: of its weights.
        layers: fewer than the configuration has; None for all.
    """
    make_config, make_model, values = CONFIGS[context.sizes.model]
    if layers is not None:
        values = {**values, "num_hidden_layers": layers}
    ends = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = make_config(**values, **ends, tie_word_embeddings=True, max_position_embeddings=POSITIONS)
    torch.manual_seed(0)
    with torch.device(context.device):
        base = make_model(config)
    base = base.to(dtype).eval()
    # generate() pads finished rows, and none ever finishes.
    base.generation_config.pad_token_id = 0
    return base


def adapt(base: PreTrainedModel, *, window: int | None, **changes: Any) -> Any:
    """The base with our adapter, nothing of it zero."""
    torch.manual_seed(0)
    options = {"r": RANK, "lora_alpha": RANK, "num_global_tokens": RANK, "state_rule": "delta", **changes}
    return randomised(peft.get_peft_model(base, tc.ThoughtConfig(window=window, **options)))


def make_prompts(base: PreTrainedModel, lengths: list[int]) -> list[list[int]]:
    """Random prompts of these lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, base.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
