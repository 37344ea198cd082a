"""Settings of the planner's tests: two shapes of real models, shallow, with small vocabularies."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from thoughtcache.config import ThoughtConfig
from thoughtcache.planning.setting import PlanSetting

COMMON = {"tie_word_embeddings": True, "max_position_embeddings": 4096, "eos_token_id": None}
SHAPES: dict[str, PretrainedConfig] = {
    "smollm2": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=4,
        vocab_size=49152, **COMMON,
    ),
    "qwen2": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2, num_hidden_layers=4,
        vocab_size=4096, **COMMON,
    ),
    "qwen3": Qwen3Config(
        hidden_size=512, intermediate_size=1536, num_attention_heads=8, num_key_value_heads=4, head_dim=128,
        num_hidden_layers=4, vocab_size=4096, **COMMON,
    ),
}  # fmt: skip


def cpu_setting(shape: str = "smollm2", *, thought: dict[str, Any] | None = None, **changes: Any) -> PlanSetting:
    """A short run on the CPU in fp32: window 64 of which half leaves at once, two evictions, rank 16."""
    adapter = ThoughtConfig(
        **{"r": 16, "num_global_tokens": 16, "window": 64, "evict_fraction": 0.5, **(thought or {})}
    )
    defaults = {"prompt_tokens": 32, "max_new_tokens": 120, "batch": 4, "group": 4, "dtype": "float32"}
    return PlanSetting(model=SHAPES[shape], thought=adapter, device_type="cpu", **{**defaults, **changes})
