"""Whole runs under TRL's options: the adapter of TRL's own trainer, which is given the same completions.

The state is the identity and there is no window, so that the policy is PEFT's LoRA. Both trainers sample for themselves
the data, rewards, advantages, losses, accumulation and optimiser.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

import thoughtcache as tc
from support.compare import max_difference
from support.grpo import base_with_eos, even_words, prompts, quick_arguments, word_tokenizer
from support.models import adapt
from thoughtcache.train.trl.options import WORKS

LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
AS_LORA = {"window": None, "initial_state": "identity", "absorb": False, "num_global_tokens": 3}
TOLERANCE = 1e-5
"""fp32 on both sides, three steps of gradient descent; `test_grpo_trl.py` says where the rounding comes from."""
PLAIN = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3}
TWICE = {"num_iterations": 2, "learning_rate": 0.5}
"""The second pass over a batch is one of another policy, by enough to be clipped."""

RUNS: dict[str, dict[str, Any]] = {
    "grpo": {**TWICE, "loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False, "epsilon": 0.1,
             "epsilon_high": 0.3, "delta": 1.2},
    "bias_corrected_kl": {**TWICE, "loss_type": "dapo", "beta": 0.2},
    "dr_grpo": {**TWICE, "loss_type": "dr_grpo", "max_completion_length": 11},
    "bnpo": {**TWICE, "loss_type": "bnpo", "scale_rewards": "batch"},
    "cispo": {**TWICE, "loss_type": "cispo", "epsilon_high": 1.1},
    "sapo": {**TWICE, "loss_type": "sapo", "sapo_temperature_neg": 1.4, "sapo_temperature_pos": 0.8},
    "luspo": {**TWICE, "loss_type": "luspo", "importance_sampling_level": "sequence", "learning_rate": 0.02},
    "vespo": {**TWICE, "loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5, "vespo_k_neg": 2.5,
              "vespo_lambda_neg": 1.5},
    "masks": {**TWICE, "top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.01,
              "mask_truncated_completions": True, "pad_to_multiple_of": 8, "temperature": 1.3},
    "rewards": {"reward_weights": [1.0, 0.3], "multi_objective_aggregation": "normalize_then_sum",
                "scale_rewards": "none"},
    "batches": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "generation_batch_size": 8,
                "num_generations": 2, "max_grad_norm": 0.1, "remove_unused_columns": True},
    "order": {"shuffle_dataset": False, "per_device_train_batch_size": 2, "num_generations": 2, "max_steps": -1,
              "num_train_epochs": 0.5, "steps_per_generation": 2},
    "optimiser": {"optim": "adamw_torch", "optim_args": "foreach=False", "learning_rate": 0.01, "adam_beta1": 0.8,
                  "adam_beta2": 0.9, "adam_epsilon": 0.05, "weight_decay": 0.3, "warmup_steps": 1, "seed": 11,
                  "data_seed": 5, "lr_scheduler_type": "cosine_with_min_lr",
                  "lr_scheduler_kwargs": {"min_lr_rate": 0.3}},
}  # fmt: skip


def short(completions: list[str], **columns: Any) -> list[float]:
    """A second reward, of another size."""
    return [-0.1 * len(text.split()) for text in completions]


class Told(GRPOTrainer):
    """TRL's trainer, which is told the completions."""

    completions: list[tuple[list[list[int]], list[list[int]], list[list[float]]]]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *rest: Any, **options: Any) -> Any:
        asked, completions, logprobs = self.completions.pop(0)
        assert asked == prompt_ids, "the two trainers see other prompts"
        return completions, logprobs


def _common(options: dict[str, Any]) -> dict[str, Any]:
    rewards = [even_words, short] if "reward_weights" in options else [even_words]
    return {"reward_funcs": rewards, "train_dataset": prompts(), "processing_class": word_tokenizer()}


def _adapter(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_ends_with_the_adapter_of_trl(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**PLAIN, **RUNS[run]}
    model = adapt(base_with_eos(dtype=torch.float32), **AS_LORA)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    settings = quick_arguments(tmp_path, **options)
    ours = tc.ThoughtGRPOTrainer(model, args=tc.ThoughtGRPOConfig(**settings), **_common(options))
    told: list[Any] = []
    original = ours._generate_single_turn

    def record(prompt_ids: list[list[int]], *rest: Any, **more: Any) -> Any:
        completions, logprobs = original(prompt_ids, *rest, **more)
        told.append((prompt_ids, completions, logprobs))
        return completions, logprobs

    monkeypatch.setattr(ours, "_generate_single_turn", record)
    ours.train()

    lora = peft.get_peft_model(base_with_eos(dtype=torch.float32), peft.LoraConfig(**LORA))
    lora.load_state_dict(start)
    theirs = Told(
        lora, args=GRPOConfig(**{"bf16": False, "gradient_checkpointing": None, **settings}), **_common(options)
    )
    theirs.completions = told
    theirs.train()

    assert not theirs.completions
    expected, found = _adapter(theirs.model), _adapter(ours.model)
    before = {name: start[name] for name in expected}
    moved = max(max_difference(value, before[name]) for name, value in expected.items())
    error = max(max_difference(found[name], value) for name, value in expected.items())
    print(f"moved {moved:.1e}, error {error:.1e}")
    assert moved > 1e-3
    assert error < TOLERANCE * max(1.0, moved)


def test_every_option_that_is_said_to_be_compared_is() -> None:
    used = {name for options in RUNS.values() for name in options} | PLAIN.keys()
    assert sorted(set(WORKS["tests/parity/test_trl_options.py"]) - used) == []
