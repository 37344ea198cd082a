"""The adapter of a learner as bytes (safetensors), and back into the model of a sampler."""

from __future__ import annotations

import safetensors.torch
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn


def pack_adapter(model: nn.Module) -> bytes:
    """The active adapter, copied to the host.

    Args:
        model: a PEFT model, wrapped by DDP or not.

    Raises:
        ValueError: if it is no PEFT model.
    """
    peft_model = _peft_model(model)
    state = get_peft_model_state_dict(peft_model, adapter_name=peft_model.active_adapter, save_embedding_layers=False)
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in state.items()})


@torch.no_grad()
def load_adapter(model: nn.Module, data: bytes) -> None:
    """Give the active adapter of a model the packed weights.

    Args:
        model: a PEFT model with an adapter of the same settings.
        data: what `pack_adapter` returned.

    Raises:
        ValueError: if the adapter has other parameters.
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
    set_peft_model_state_dict(peft_model, state, adapter_name=name)


def _peft_model(model: nn.Module) -> PeftModel:
    inner = getattr(model, "module", model) if not isinstance(model, PeftModel) else model
    if not isinstance(inner, PeftModel):
        raise ValueError(f"{type(inner).__name__} is no PEFT model; wrap it with peft.get_peft_model(base, config)")
    return inner
