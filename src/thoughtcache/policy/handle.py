"""The parts of a model that every execution of the policy needs: its tuner, backbone and head, checked once."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.adapter.positions import PositionReach, position_reach


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyHandle:
    """The parts of an adapted model.

    Attributes:
        tuner: the PEFT tuner with the thought states.
        backbone: decoder stack, hidden states out.
        head: language-model head.
        device: where inputs go.
        reach: how far its positions reach.
    """

    tuner: ThoughtModel
    backbone: nn.Module
    head: nn.Module
    device: torch.device
    reach: PositionReach


def find_tuner(model: nn.Module) -> ThoughtModel:
    """The tuner inside a PEFT model, wrapped (DDP, accelerate) or not.

    Raises:
        ValueError: if the model carries no thought adapter.
    """
    inner: Any = getattr(model, "module", model) if not isinstance(model, PeftModel) else model
    tuner = inner if isinstance(inner, ThoughtModel) else getattr(inner, "base_model", None)
    if not isinstance(tuner, ThoughtModel):
        raise ValueError(
            f"{type(inner).__name__} carries no thought adapter; wrap it first: "
            "model = peft.get_peft_model(base, thoughtcache.ThoughtConfig(...))"
        )
    return tuner


def full_cache(model: nn.Module) -> AbstractContextManager[None]:
    """Run the active adapter without its window inside a block: full cache, and its initial state for ever.

    It is then another policy than the one that is trained under the window: that of `ThoughtConfig(window=None)`, for
    the forward pass, `generate` (any cache, beams and assistants included), continuous batching and rollouts that are
    sampled inside the block, in all threads.

    Args:
        model: model with a thought adapter, wrapped or not.

    Returns:
        A context manager: `with full_cache(model): ...`.

    Raises:
        ValueError: if the model carries no thought adapter.
    """
    return find_tuner(model).full_cache()


def open_policy(model: nn.Module) -> PolicyHandle:
    """Find the parts of the policy and refuse settings under which it could not be repeated exactly.

    Raises:
        ValueError: if gradient checkpointing (transformers then drops the cache) or attention dropout is on.
    """
    tuner = find_tuner(model)
    base: Any = tuner.model
    # transformers renamed its own property within the supported versions; this is what both names compute.
    if any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
        raise ValueError("gradient checkpointing drops the cache; call model.gradient_checkpointing_disable()")
    if getattr(base.config, "attention_dropout", 0.0) > 0:
        raise ValueError("attention_dropout > 0 makes scoring differ from sampling; set config.attention_dropout=0.0")
    return PolicyHandle(
        tuner=tuner,
        backbone=tuner.backbone,
        head=base.get_output_embeddings(),
        device=base.device,
        reach=position_reach(base.config),
    )
