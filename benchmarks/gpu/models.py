"""Models from a configuration with random weights, adapters without zeros, and prompts of unequal lengths."""

from __future__ import annotations

from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import thoughtcache as tc
from benchmarks.gpu.check import Context
from benchmarks.learner_case import build_config
from benchmarks.sampler.models import randomised

RANK = 32


def make_base(context: Context, dtype: torch.dtype, *, layers: int | None = None) -> PreTrainedModel:
    """A base that declares no end of sequence.

    Args:
        context: where and which.
        dtype: of its weights.
        layers: fewer than the configuration has; None for all.
    """
    config = build_config(context.sizes.model, layers=layers)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(0)
    with torch.device(context.device):
        base: Any = AutoModelForCausalLM.from_config(config)
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
