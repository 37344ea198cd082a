"""Every option of `trl.GRPOConfig` (transformers' own included): does it work here, is it refused, has it no meaning?

`ThoughtGRPOConfig` refuses by this table, `docs/trl.md` is made from it, and tests/unit/test_trl_options.py fails when
TRL has an option that is not in it, or one that is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A value of an option that is refused.

    Attributes:
        given: whether the settings hold such a value.
        values: these values in words.
        reason: why they cannot be served.
        remedy: what to set instead.
    """

    given: Callable[[Any], bool]
    values: str
    reason: str
    remedy: str


_SCORED = "the learner scores the whole softmax"
_BACKEND = "only our own rollout keeps the evictions and states that the learner repeats"
_SHARDED = (
    "sampler and learner call the backbone inside the wrapped model, with whole parameters; it was never run with "
    "sharded ones"
)

REFUSED: dict[str, Refusal] = {
    "temperature": Refusal(
        given=lambda c: c.temperature <= 0,
        values="0 and below",
        reason="logits are divided by it",
        remedy="a positive number",
    ),
    "top_p": Refusal(given=lambda c: c.top_p < 1.0, values="below 1", reason=_SCORED, remedy="1.0"),
    "top_k": Refusal(given=lambda c: c.top_k > 0, values="above 0", reason=_SCORED, remedy="0"),
    "min_p": Refusal(given=lambda c: bool(c.min_p), values="above 0", reason=_SCORED, remedy="None"),
    "repetition_penalty": Refusal(
        given=lambda c: c.repetition_penalty != 1.0, values="other than 1", reason=_SCORED, remedy="1.0"
    ),
    "generation_kwargs": Refusal(
        given=lambda c: bool(c.generation_kwargs), values="any", reason=f"{_SCORED}, and {_BACKEND}", remedy="None"
    ),
    "cache_implementation": Refusal(
        given=lambda c: c.cache_implementation is not None, values="any", reason=_BACKEND, remedy="None"
    ),
    "use_vllm": Refusal(given=lambda c: c.use_vllm, values="True", reason=_BACKEND, remedy="False"),
    "use_transformers_continuous_batching": Refusal(
        given=lambda c: c.use_transformers_continuous_batching, values="True", reason=_BACKEND, remedy="False"
    ),
    "max_completion_length": Refusal(
        given=lambda c: c.max_completion_length is None,
        values="None",
        reason="rollouts need a bound",
        remedy="an integer",
    ),
    "gradient_checkpointing": Refusal(
        given=lambda c: bool(c.gradient_checkpointing),
        values="True (also as activation_checkpointing)",
        reason="transformers drops the cache under it",
        remedy="False; checkpoint_layers=True does the same and keeps it",
    ),
    "mixed_precision": Refusal(
        given=lambda c: c.mixed_precision != "no",
        values='"bf16" and "fp16" (bf16=True, fp16=True, or of the launcher)',
        reason="autocast would run the layers in half precision, and only in the learner",
        remedy='bf16=False, fp16=False and ACCELERATE_MIXED_PRECISION=no; model_init_kwargs={"dtype": "bfloat16"} '
        "loads the model in bfloat16",
    ),
    "bf16_full_eval": Refusal(
        given=lambda c: c.bf16_full_eval, values="True", reason="it casts the thought state", remedy="False"
    ),
    "fp16_full_eval": Refusal(
        given=lambda c: c.fp16_full_eval, values="True", reason="it casts the thought state", remedy="False"
    ),
    "neftune_noise_alpha": Refusal(
        given=lambda c: c.neftune_noise_alpha is not None,
        values="any",
        reason="noise is not repeated in replay",
        remedy="None",
    ),
    "torch_compile": Refusal(
        given=lambda c: c.torch_compile,
        values="True (also by torch_compile_backend, torch_compile_mode)",
        reason="segments change shape and pass through a Python request",
        remedy="False",
    ),
    "use_liger_kernel": Refusal(
        given=lambda c: c.use_liger_kernel,
        values="True",
        reason="it replaces the forward that the cache relies on",
        remedy="False",
    ),
    "entropy_coef": Refusal(
        given=lambda c: c.entropy_coef != 0.0,
        values="other than 0",
        reason="replayed entropies carry no gradient",
        remedy="0.0",
    ),
    "use_adaptive_entropy": Refusal(
        given=lambda c: c.use_adaptive_entropy,
        values="True",
        reason="replayed entropies carry no gradient",
        remedy="False",
    ),
    "sync_ref_model": Refusal(
        given=lambda c: c.sync_ref_model,
        values="True",
        reason="the reference is the same model with its adapter off, or a frozen copy of the adapter",
        remedy="False",
    ),
    "deepspeed": Refusal(
        given=lambda c: c.deepspeed is not None, values="any", reason=_SHARDED, remedy="None, and torchrun (DDP)"
    ),
    "fsdp": Refusal(given=lambda c: bool(c.fsdp), values="any", reason=_SHARDED, remedy="None, and torchrun (DDP)"),
    "parallelism_config": Refusal(
        given=lambda c: c.parallelism_config is not None,
        values="any",
        reason=_SHARDED,
        remedy="None, and torchrun (DDP)",
    ),
}
"""Checked in this order. `mixed_precision` is no field; it is what `bf16`, `fp16` and the launcher come to."""

SOME_VERSIONS = frozenset(
    {
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "dataloader_in_order",
        "dataloader_multiprocessing_context",
        "logging_dir",
        "warmup_ratio",
    }
)
"""Options that not every supported version of transformers has."""

REFUSED_BY_OTHER_NAME = {
    "use_transformers_paged": "use_transformers_continuous_batching",
    "activation_checkpointing": "gradient_checkpointing",
    "bf16": "mixed_precision",
    "fp16": "mixed_precision",
    "torch_compile_backend": "torch_compile",
    "torch_compile_mode": "torch_compile",
    "auto_find_batch_size": "TRL refuses it: a generation batch holds full groups",
}
"""Options that come to one of `REFUSED`, or that TRL refuses itself."""

WORKS: dict[str, tuple[str, ...]] = {
    "tests/parity/test_trl_options.py": (
        "adam_beta1", "adam_beta2", "adam_epsilon", "beta", "data_seed", "delta", "epsilon", "epsilon_high",
        "generation_batch_size", "gradient_accumulation_steps", "importance_sampling_level", "learning_rate",
        "loss_type", "lr_scheduler_kwargs", "lr_scheduler_type", "mask_truncated_completions", "max_completion_length",
        "max_grad_norm", "max_steps", "multi_objective_aggregation", "num_generations", "num_iterations",
        "num_train_epochs", "off_policy_mask_threshold", "optim", "optim_args", "pad_to_multiple_of",
        "per_device_train_batch_size", "remove_unused_columns", "reward_weights", "sapo_temperature_neg",
        "sapo_temperature_pos", "scale_rewards", "seed", "shuffle_dataset", "steps_per_generation", "temperature",
        "top_entropy_quantile", "use_bias_correction_kl", "vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg",
        "vespo_lambda_pos", "warmup_steps", "weight_decay",
    ),
    "tests/trajectory/test_trl_surroundings.py": (
        "cast_lm_head_to_fp32", "chat_template_kwargs", "eval_on_start", "eval_steps", "eval_strategy",
        "greater_is_better", "load_best_model_at_end", "log_completions", "logging_steps", "metric_for_best_model",
        "model_init_kwargs", "num_completions_to_print", "num_generations_eval", "output_dir",
        "per_device_eval_batch_size", "save_steps", "save_strategy", "save_total_limit",
    ),
    "tests/trajectory/test_lost_rank.py": ("ddp_backend", "ddp_timeout"),
    "tests/trajectory/test_grpo.py": ("disable_tqdm", "report_to", "resume_from_checkpoint", "use_cpu"),
    "tests/unit/test_trl_options.py, left to transformers and TRL": (
        "accelerator_config", "dataloader_drop_last", "dataloader_in_order",
        "dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_persistent_workers",
        "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_broadcast_buffers", "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters", "ddp_static_graph", "debug", "enable_jit_checkpoint", "eval_delay",
        "full_determinism", "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy",
        "hub_token", "ignore_data_skip", "log_completions_hub_repo", "log_level", "log_level_replica",
        "log_on_each_node", "log_unique_prompts", "logging_dir", "logging_first_step", "logging_nan_inf_filter",
        "logging_strategy", "optim_target_modules", "project", "push_to_hub",
        "restore_callback_states_from_checkpoint", "run_name",
        "save_on_each_node", "save_only_model", "skip_memory_metrics", "tf32", "torch_empty_cache_steps",
        "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id", "trust_remote_code",
        "warmup_ratio",
    ),
}  # fmt: skip
"""Options that work, by the test that holds them. The last entry's are served by code of transformers and TRL that this
project neither replaces nor runs in its tests; the test is that they arrive as they were given."""

NO_MEANING: dict[str, tuple[str, ...]] = {
    "use_vllm is refused": (
        "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex",
        "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
        "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size",
        "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
        "vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap",
    ),
    "continuous batching is refused": ("transformers_continuous_batching_config",),
    "sync_ref_model is refused": ("ref_model_mixup_alpha", "ref_model_sync_steps"),
    "adaptive entropy is refused": ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    "tools are refused": ("max_tool_calling_iterations",),
    "images are refused": ("log_multimodal",),
    "gradient checkpointing is refused": ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    "Liger kernels are refused": ("liger_kernel_config",),
    "sharded parameters are refused": ("fsdp_config", "ds3_gather_for_generation"),
    "models with routers are not supported by the adapter": ("router_aux_loss_coef",),
    "a policy with dropout is refused, whether it is switched off here or not": ("disable_dropout",),
    "sampler and learner always use their cache": ("use_cache",),
    "GRPO takes no labels": ("label_names", "label_smoothing_factor"),
    "TRL has a sampler of its own": ("train_sampling_strategy", "length_column_name"),
    "TRL's loss has a denominator of its own": ("average_tokens_across_devices",),
    "TRL counts tokens itself": ("include_num_input_tokens_seen",),
    "TRL evaluates losses and rewards alone, no predictions": (
        "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
        "include_for_metrics", "batch_eval_metrics",
    ),
    "notes for scripts, which the trainer does not read": ("do_train", "do_eval", "do_predict", "local_rank"),
}  # fmt: skip
"""Options that change nothing here, by the reason."""


def refuse_options(config: Any) -> None:
    """Refuse options under which the scored policy is not the sampled one, or that the replay cannot serve.

    Args:
        config: a `ThoughtGRPOConfig`.

    Raises:
        ValueError: if there is such an option; the message names the first one, the reason and the remedy.
    """
    for name, refusal in REFUSED.items():
        if refusal.given(config):
            raise ValueError(
                f"{name}={getattr(config, name)!r} is not supported under a bounded cache: {refusal.reason}; "
                f"use {refusal.remedy}"
            )
