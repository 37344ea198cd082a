"""Decides which models and layers the adapter supports; the rest is refused with the reason and the remedy."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes in which a base model can be loaded."""
SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3", "smollm3", "mistral")
# Lora layers whose forward consults `lora_variant`; by name, since bitsandbytes, gptq and torchao are optional.
SUPPORTED_QUANTISED_LAYERS = ("Linear8bitLt", "Linear4bit", "GPTQLoraLinear", "TorchaoLoraLinear")
_LAYER_INDEX = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def check_model(config: Any) -> None:
    """Refuse models whose attention the bounded cache does not cover.

    Args:
        config: the transformers configuration (an object or the dict that PEFT passes), or None if there is none.

    Raises:
        ValueError: if there is no configuration, the model type is unknown, or a layer has its own attention window.
    """
    if config is None:
        raise ValueError(
            "the model has no transformers configuration, so the number of its layers, heads and positions is not "
            "known; ThoughtConfig adapts causal language models of transformers"
        )
    values = config if isinstance(config, dict) else config.to_dict()
    model_type = values.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"model type {model_type!r} is not supported by ThoughtConfig; supported are "
            f"{list(SUPPORTED_MODEL_TYPES)} (Llama 3, Qwen2/2.5/3, SmolLM2/3, R1 distills, Mistral without windows)"
        )
    layer_types = set(values.get("layer_types") or ())
    windowed = layer_types - {"full_attention"}
    sliding = values.get("sliding_window") is not None and values.get("use_sliding_window", True)
    if windowed or (sliding and not layer_types):
        raise ValueError(
            f"model type {model_type!r} has layers with an attention window of their own "
            f"(layer_types {sorted(windowed)}, sliding_window {values.get('sliding_window')}), which evict too; "
            "load it with sliding_window=None if its context allows that, or use a full-attention model"
        )


def check_bare(model: nn.Module) -> None:
    """Refuse a model that carries adapter layers already: two adapters would act, and neither can be taken off.

    Raises:
        ValueError: if it carries some; the message names the remedy.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model carries adapter layers already; take its base back with model.unload(), or give the wrapped "
            "model another thought adapter with model.add_adapter(name, config)"
        )


def layer_index(module_name: str) -> int:
    """Decoder layer of a module by its name.

    Raises:
        ValueError: if the module is not inside a decoder layer.
    """
    found = _LAYER_INDEX.search(f"{module_name}.")
    if found is None:
        raise ValueError(
            f"target module {module_name!r} is not inside a decoder layer and has no keys and values to learn from; "
            "remove it from target_modules (lm_head and embeddings cannot carry a thought state)"
        )
    return int(found.group(1))


def check_layer(module: nn.Module, module_name: str) -> None:
    """Refuse LoRA layer classes whose forward ignores variants: they would silently be plain LoRA.

    Raises:
        ValueError: if the layer is of another class; the message names the class and the remedy.
    """
    if type(module) is LoraLinear or type(module).__name__ in SUPPORTED_QUANTISED_LAYERS:
        return
    raise ValueError(
        f"{module_name!r} is a {type(module).__name__} layer, which ignores the thought state or was never tried with "
        f"it; supported are torch.nn.Linear and linears of bitsandbytes (4 and 8 bit), GPTQ and torchao (8 bit). Load "
        f"the base model in one of these"
    )
