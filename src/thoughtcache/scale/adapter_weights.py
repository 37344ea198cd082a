"""The adapter of a learner as bytes (`wire.py`), and back into the model of a sampler.

Settings that decide how the weights are used travel with them; a sampler with others is refused, because it would
sample another policy than the one that learns.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from thoughtcache.config import ThoughtConfig
from thoughtcache.scale.wire import join, split

SHAPES = ("r", "num_global_tokens")
"""Settings that the shapes of the weights tell; a difference in them has an error message of its own."""


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
    return join(_settings(peft_model), tensors)


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
    theirs, state = split(data, "adapter")
    own = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in state.items()}:
        raise ValueError(
            "the adapter that was sent has other parameters than the sampler's; load the sampler's model with the "
            "ThoughtConfig of the learner (r, num_global_tokens, target_modules, state_rule, memory)"
        )
    ours = _settings(peft_model)
    different = [
        f"{key}={theirs[key]!r} (the sampler has {ours[key]!r})" for key in ours if ours[key] != theirs.get(key)
    ]
    if different:
        raise ValueError(
            f"the adapter that was sent was made with {', '.join(different)}; load the sampler's model with the "
            "ThoughtConfig of the learner"
        )
    set_peft_model_state_dict(peft_model, state, adapter_name=name)


def _settings(model: PeftModel) -> dict[str, Any]:
    """The settings that decide how the weights are used."""
    config = model.peft_config[model.active_adapter]
    assert isinstance(config, ThoughtConfig)
    return {name: value for name, value in config.behaviour().items() if name not in SHAPES}


def _peft_model(model: nn.Module) -> PeftModel:
    inner = getattr(model, "module", model) if not isinstance(model, PeftModel) else model
    if not isinstance(inner, PeftModel):
        raise ValueError(f"{type(inner).__name__} is no PEFT model; wrap it with peft.get_peft_model(base, config)")
    return inner
