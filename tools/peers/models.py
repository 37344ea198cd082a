"""Tiny random models in folders that are called as the suite's hub models are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)

VOCABULARY = 1200  # the suite uses token 1000
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
_GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
CONFIGS: dict[str, Any] = {
    "trl-internal-testing/tiny-random-LlamaForCausalLM": LlamaConfig(**_SIZES),
    "peft-internal-testing/tiny-dummy-qwen2": Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "hf-internal-testing/tiny-random-MistralForCausalLM": MistralConfig(**_SIZES, sliding_window=None),
    "peft-internal-testing/tiny-random-OPTForCausalLM": OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, init_std=0.2,
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": GPT2Config(**_GPT),
    "hf-internal-testing/tiny-random-gpt2": GPT2Config(**_GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": GPTJConfig(**_GPT, rotary_dim=4),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": Gemma3TextConfig(**_SIZES, head_dim=8),
}  # fmt: skip


def make_models(folder: Path) -> None:
    """Write every model that is not there yet."""
    for name, config in CONFIGS.items():
        if not (folder / name / "config.json").exists():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
