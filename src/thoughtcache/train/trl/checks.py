"""The refusals of the GRPO trainer before anything is built, each with its reason and the remedy."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from trl.trainer.grpo_config import GRPOConfig

from thoughtcache.config import ThoughtConfig
from thoughtcache.policy.handle import find_tuner
from thoughtcache.scale.backend import RolloutBackend
from thoughtcache.train.trl.config import ThoughtGRPOConfig

POLICY_ADAPTER = "default"


def check_arguments(
    model: Any, args: GRPOConfig | None, peft_config: Any, refused: dict[str, Any]
) -> ThoughtGRPOConfig:
    """Refuse what has no thought adapter or brings tokens that the policy did not sample; returns the settings."""
    if args is None:
        args = ThoughtGRPOConfig("thoughtcache-grpo")
    if not isinstance(args, ThoughtGRPOConfig):
        raise ValueError(f"args must be a ThoughtGRPOConfig, got {type(args).__name__}; it takes the same options")
    for name, value in refused.items():
        if value:
            raise ValueError(
                f"{name} is not supported under a bounded cache: tokens that the policy did not sample token by token "
                "cannot be replayed; leave it out"
            )
    if args.cast_lm_head_to_fp32 and not isinstance(model, str) and model.config.tie_word_embeddings:
        raise ValueError(
            "cast_lm_head_to_fp32=True is not supported with tied embeddings: TRL looks for the embeddings where an "
            "adapted model does not have them; use False, or load the model with tie_word_embeddings=False"
        )
    if peft_config is not None:
        if not isinstance(peft_config, ThoughtConfig):
            raise ValueError(f"peft_config must be a ThoughtConfig, got {type(peft_config).__name__}")
        return args
    if not isinstance(model, PeftModel):
        raise ValueError(
            "the model carries no thought adapter; pass an adapted model, or a base model together with "
            "peft_config=thoughtcache.ThoughtConfig(...)"
        )
    find_tuner(model)
    if args.beta != 0.0 and POLICY_ADAPTER not in model.peft_config:
        raise ValueError(
            f"with beta={args.beta} TRL copies the adapter named {POLICY_ADAPTER!r} as the reference, the model has "
            f"{sorted(model.peft_config)}; load it with adapter_name={POLICY_ADAPTER!r} or set beta=0.0"
        )
    return args


def check_backend(backend: RolloutBackend | None, args: ThoughtGRPOConfig) -> None:
    """Refuse what cannot hold for rollouts that another adapter has sampled."""
    if backend is not None and backend.ahead and args.reuse_rollout:
        raise ValueError(
            "reuse_rollout=True needs rollouts of the current weights; use a backend with ahead=False, or "
            "reuse_rollout=False"
        )


def check_special_tokens(tokenizer: Any, stop_ids: list[int]) -> None:
    """Refuse a tokenizer without a token to pad with, and a run in which no sequence could end.

    Args:
        tokenizer: tokenizer of the trainer, after TRL has put the end-of-sequence token in place of a missing padding
            token.
        stop_ids: tokens that end a sequence.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the tokenizer has neither a padding token nor an end-of-sequence token to pad with; set "
            "tokenizer.pad_token to one of its tokens (padding is never scored)"
        )
    if not stop_ids:
        raise ValueError(
            "neither the tokenizer nor the model names an end-of-sequence token, so every completion would be cut at "
            "max_completion_length; set tokenizer.eos_token or model.generation_config.eos_token_id"
        )
