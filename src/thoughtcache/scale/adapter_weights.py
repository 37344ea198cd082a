"""The adapter of a learner as bytes (safetensors), and back into the model of a sampler.

Settings that decide how the weights are used travel in the header; a sampler with others is refused, because it would
sample another policy than the one that learns.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

SETTINGS = (
    "lora_alpha", "use_rslora", "alpha_pattern", "window", "evict_fraction", "eviction", "positions", "initial_state",
    "absorb", "state_rule", "state_norm",
)  # fmt: skip
"""Fields of `ThoughtConfig` that no shape of a weight tells."""
HEADER_SIZE_BYTES = 8
"""A safetensors file begins with the length of its JSON header, little-endian."""


def pack_adapter(model: nn.Module) -> bytes:
    """The active adapter, copied to the host.

    Args:
        model: a PEFT model, wrapped by DDP or not.

    Raises:
        ValueError: if it is no PEFT model.
    """
    peft_model = _peft_model(model)
    state = get_peft_model_state_dict(peft_model, adapter_name=peft_model.active_adapter, save_embedding_layers=False)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    # One entry: several would come in another order each time, and the same adapter would look like a new one.
    return safetensors.torch.save(tensors, metadata={"settings": json.dumps(_settings(peft_model))})


@torch.no_grad()
def load_adapter(model: nn.Module, data: bytes) -> None:
    """Give the active adapter of a model the packed weights.

    Args:
        model: a PEFT model with an adapter of the same settings.
        data: what `pack_adapter` returned.

    Raises:
        ValueError: if the adapter has other parameters or other settings.
    """
    peft_model = _peft_model(model)
    name = peft_model.active_adapter
    state = safetensors.torch.load(data)
    own = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in state.items()}:
        raise ValueError(
            "the adapter that was sent has other parameters than the sampler's; load the sampler's model with the "
            "ThoughtConfig of the learner (r, num_global_tokens, target_modules, state_rule)"
        )
    theirs, ours = _sent_settings(data), _settings(peft_model)
    different = [
        f"{key}={theirs[key]!r} (the sampler has {ours[key]!r})" for key in SETTINGS if ours[key] != theirs[key]
    ]
    if different:
        raise ValueError(
            f"the adapter that was sent was made with {', '.join(different)}; load the sampler's model with the "
            "ThoughtConfig of the learner"
        )
    set_peft_model_state_dict(peft_model, state, adapter_name=name)


def _settings(model: PeftModel) -> dict[str, Any]:
    """What decides how the weights are used."""
    config = model.peft_config[model.active_adapter]
    return {name: getattr(config, name) for name in SETTINGS}


def _sent_settings(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:HEADER_SIZE_BYTES], "little")
    header = json.loads(data[HEADER_SIZE_BYTES : HEADER_SIZE_BYTES + size])
    return dict(json.loads(header["__metadata__"]["settings"]))


def _peft_model(model: nn.Module) -> PeftModel:
    inner = getattr(model, "module", model) if not isinstance(model, PeftModel) else model
    if not isinstance(inner, PeftModel):
        raise ValueError(f"{type(inner).__name__} is no PEFT model; wrap it with peft.get_peft_model(base, config)")
    return inner
