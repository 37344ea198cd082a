"""`S = I` without window is TRL's GRPO with PEFT's LoRA: one loss and one gradient on the same rollouts."""

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
from support.compare import gradient_error, gradients, max_difference
from support.grpo import base_with_eos, even_words, make_trainer, prompts, quick_arguments, word_tokenizer
from support.models import adapt

# fp32 on both sides. Ours runs token positions without padding on the left, TRL's with it; TRL sums its softmax in
# chunks. 6e-8 per operation over two layers and fourteen tokens.
LOSS_TOLERANCE = 1e-5
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
AS_LORA = {"window": None, "initial_state": "identity", "absorb": False, "num_global_tokens": 3}

OBJECTIVES: dict[str, dict[str, Any]] = {
    "dapo": {},
    "grpo_kl": {"loss_type": "grpo", "beta": 0.04},
    "dr_grpo_two_iterations": {"loss_type": "dr_grpo", "num_iterations": 2},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2},
    "masked_truncation": {"mask_truncated_completions": True},
    "warm": {"temperature": 1.3},
    "high_entropy_tokens": {"top_entropy_quantile": 0.5},
    "off_policy_mask": {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
}


def _trl_trainer(weights: dict[str, Tensor], folder: Path, **changes: Any) -> GRPOTrainer:
    model = peft.get_peft_model(base_with_eos(dtype=torch.float32), peft.LoraConfig(**LORA))
    model.load_state_dict(weights)
    settings = {"bf16": False, "gradient_checkpointing": None, **quick_arguments(folder), **changes}
    return GRPOTrainer(
        model,
        even_words,
        GRPOConfig(**settings),
        train_dataset=prompts(),
        processing_class=word_tokenizer(),
    )


def _loss_and_gradients(trainer: GRPOTrainer, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    losses: list[Tensor] = []

    def loss() -> Tensor:
        losses.append(trainer._compute_loss(trainer.model, inputs))
        return losses[0]

    found = gradients(trainer.model, loss)
    return losses[0].detach(), found


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_identity_state_without_window_is_trl_with_lora(objective: str, tmp_path: Path) -> None:
    settings = OBJECTIVES[objective]
    model = adapt(base_with_eos(dtype=torch.float32), **AS_LORA)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    ours = make_trainer(model, tmp_path / "ours", **settings)
    theirs = _trl_trainer(weights, tmp_path / "theirs", **settings)
    ours.model.train()
    inputs = ours._generate_and_score_completions([{"prompt": p} for p in ("w3 w4", "w3 w4", "w5", "w9 w8 w7")])
    assert inputs["completion_mask"].sum() < inputs["completion_mask"].numel(), "no row ended early"
    # A policy ratio other than one and a reference other than the policy, or half of the loss is not compared.
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        if name in inputs:
            inputs[name] = inputs[name] + 0.3 * torch.randn_like(inputs[name])
    inputs["advantages"] = torch.tensor([1.0, -0.5, 0.25, -0.75])

    our_loss, our_gradients = _loss_and_gradients(ours, inputs)
    without = {key: value for key, value in inputs.items() if key != "rollout_index"}
    their_loss, their_gradients = _loss_and_gradients(theirs, without)

    print(f"loss error {max_difference(our_loss, their_loss):.1e}", end=", ")
    print(f"gradient error {gradient_error(our_gradients, their_gradients):.1e}")
    assert their_loss.abs() > 1e-3
    assert max_difference(our_loss, their_loss) < LOSS_TOLERANCE * max(1.0, their_loss.abs().item())
    assert gradient_error(our_gradients, their_gradients) < LOSS_TOLERANCE * 10
    for name in ("kl", "entropy", "clip_ratio/region_mean"):
        assert ours._metrics["train"][name] == pytest.approx(theirs._metrics["train"][name], abs=1e-5)


@pytest.mark.parametrize("reference", ["consistent", "full"])
def test_passes_of_identity_state_equal_those_of_trl(reference: str, tmp_path: Path) -> None:
    """Old and reference log-probabilities, with TRL's frozen copy of the adapter as the reference."""
    model = adapt(base_with_eos(dtype=torch.float32), **AS_LORA)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    ours = make_trainer(model, tmp_path / "ours", beta=0.04, num_iterations=2, reference=reference)
    theirs = _trl_trainer(weights, tmp_path / "theirs", beta=0.04, num_iterations=2)
    ours.model.train()
    inputs = ours._generate_and_score_completions([{"prompt": p} for p in ("w3 w4", "w3 w4", "w5", "w9 w8 w7")])
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        expected, _, _ = theirs._get_per_token_logps_and_entropies(
            theirs.model, ids, mask, inputs["completion_ids"].shape[1]
        )
    real = inputs["completion_mask"].bool()
    for name in ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
        assert max_difference(inputs[name][real], expected[real]) < LOSS_TOLERANCE


def test_a_window_makes_a_difference(tmp_path: Path) -> None:
    """The comparison above can fail: with a window of three the two trainers disagree."""
    model = adapt(base_with_eos(dtype=torch.float32), **{**AS_LORA, "window": 3})
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    ours = make_trainer(model, tmp_path / "ours")
    theirs = _trl_trainer(weights, tmp_path / "theirs")
    ours.model.train()
    inputs = ours._generate_and_score_completions([{"prompt": "w3 w4"}] * 4)
    inputs["advantages"] = torch.tensor([1.0, -0.5, 0.25, -0.75])
    _, our_gradients = _loss_and_gradients(ours, inputs)
    _, their_gradients = _loss_and_gradients(theirs, {k: v for k, v in inputs.items() if k != "rollout_index"})
    assert gradient_error(our_gradients, their_gradients) > 1e-2


def test_trainer_is_trl_own(tmp_path: Path) -> None:
    trainer = make_trainer(adapt(base_with_eos(dtype=torch.float32)), tmp_path)
    assert isinstance(trainer, GRPOTrainer)
    assert isinstance(trainer.args, GRPOConfig)
    assert isinstance(trainer, tc.ThoughtGRPOTrainer)
