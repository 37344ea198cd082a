"""The closed form of a KV cache."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig


def kv_cache_bytes(config: PretrainedConfig, tokens: int, batch: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of `batch` sequences with `tokens` resident tokens each: `2 L B T H D size`.

    Args:
        config: configuration of the base model.
        tokens: resident tokens per sequence, prompt included: P + W with a window, P + T with the full cache.
        batch: sequences.
        dtype: dtype of the cache.

    Raises:
        ValueError: if a count is negative.
    """
    if tokens < 0 or batch < 0:
        raise ValueError(f"tokens and batch must not be negative, got tokens={tokens} and batch={batch}")
    text = config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    numbers = 2 * text.num_hidden_layers * batch * tokens * text.num_key_value_heads * head_size
    return int(numbers * dtype.itemsize)
