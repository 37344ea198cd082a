"""Rollouts are scored as those of the current weights while they are, and as those of older ones from then on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trajectory.test_backend import Here

import thoughtcache as tc
from support.compare import TOLERANCE, max_difference
from support.grpo import base_with_eos, even_words, make_trainer, prompts, quick_arguments, word_tokenizer
from support.models import adapt
from thoughtcache.train.trl import chain_turns
from thoughtcache.train.trl import trainer as grpo


def _model() -> Any:
    return adapt(base_with_eos(dtype=torch.float32), evict_fraction=0.4)


class _Passes:
    """What every loss was computed from: the gap of its log-probabilities to those of the weights of now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: list[float] = []
        self.anchored: list[bool] = []
        self.reuse: list[bool] = []
        self.old_is_given: list[bool] = []
        score, compute_loss = grpo.score_rollouts, grpo.GRPOTrainer._compute_loss

        def spy_scores(model: Any, rollouts: Any, options: Any) -> Any:
            found = score(model, rollouts, options)
            if torch.is_grad_enabled():
                with torch.no_grad():
                    now = tc.replay(model, rollouts, anchored=False).logprobs
                self.error.append(max_difference(found.logprobs.detach(), now))
                self.anchored.append(options.anchored)
                self.reuse.append(options.reuse)
            return found

        def spy_loss(trainer: Any, model: Any, inputs: dict[str, Any]) -> Any:
            self.old_is_given.append(inputs.get("old_per_token_logps") is not None)
            return compute_loss(trainer, model, inputs)

        monkeypatch.setattr(grpo, "score_rollouts", spy_scores)
        monkeypatch.setattr(grpo.GRPOTrainer, "_compute_loss", spy_loss)


RUNS: dict[str, dict[str, Any]] = {
    "two_iterations": {"num_iterations": 2},
    "four_steps_per_generation": {"steps_per_generation": 4, "per_device_train_batch_size": 1},
    "reused_rollouts": {"num_iterations": 2, "reuse_rollout": True},
}


@pytest.mark.parametrize("run", RUNS)
def test_a_second_training_knows_that_what_is_left_of_the_first_is_stale(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first `train()` ends in the middle of a generation; the second one begins with the rest, at step 0 again."""
    trainer = make_trainer(_model(), tmp_path, max_steps=1, learning_rate=0.1, **RUNS[run])
    trainer.train()
    passes = _Passes(monkeypatch)
    trainer.train()
    assert passes.anchored == [False]
    assert passes.reuse == [False]
    assert passes.old_is_given == [True]
    assert max(passes.error) < TOLERANCE[torch.float32]


def _scale(trainer: tc.ThoughtGRPOTrainer) -> None:
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.5)


def _scale_data(trainer: tc.ThoughtGRPOTrainer) -> None:
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data * 1.5


def _load(trainer: tc.ThoughtGRPOTrainer) -> None:
    state = {name: value * 1.5 for name, value in trainer.model.state_dict().items() if "lora_B" in name}
    trainer.model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("change", [_scale, _scale_data, _load], ids=["in_place", "data", "loaded"])
def test_weights_that_somebody_changes_make_what_was_sampled_stale(
    change: Callable[[tc.ThoughtGRPOTrainer], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an optimiser step in between: fresh at first, then corrected by the policy that sampled."""
    trainer = make_trainer(_model(), tmp_path)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "w3 w4"}] * 4)
    passes = _Passes(monkeypatch)
    trainer._compute_loss(trainer.model, inputs)
    change(trainer)
    trainer._compute_loss(trainer.model, inputs)
    assert passes.anchored == [True, False]
    assert passes.old_is_given == [False, True]
    assert max(passes.error) < TOLERANCE[torch.float32]
    assert inputs.get("old_per_token_logps") is None, "the batch that TRL keeps is not changed"


def test_an_evaluation_between_leaves_fresh_rollouts_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(_model(), tmp_path, beta=0.04, per_device_eval_batch_size=4)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "w3 w4"}] * 4)
    trainer.evaluate(prompts(1))
    trainer.model.train()
    passes = _Passes(monkeypatch)
    trainer._compute_loss(trainer.model, inputs)
    assert passes.anchored == [True]


def test_a_second_training_draws_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    original = chain_turns.rollout
    monkeypatch.setattr(
        chain_turns, "rollout", lambda *args, **options: seeds.append(options["seed"]) or original(*args, **options)
    )
    trainer = make_trainer(_model(), tmp_path, max_steps=2)
    trainer.train()
    trainer.train()
    assert len(seeds) == len(set(seeds)) == 4


def test_a_second_training_samples_ahead_as_the_first_and_never_in_vain(tmp_path: Path) -> None:
    backend = Here(ahead=True)
    trainer = tc.ThoughtGRPOTrainer(
        _model(),
        even_words,
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path)),
        train_dataset=prompts(),
        processing_class=word_tokenizer(),
        rollout_backend=backend,
    )
    for _ in range(2):
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert [entry["rollout/staleness"] for entry in logged] == [0.0, 1.0, 1.0]
    assert len(backend.started) == 6
    resumed = Here(ahead=True)
    saving = {"save_strategy": "steps", "save_steps": 1}
    for backend in (Here(ahead=True), resumed):
        trainer = tc.ThoughtGRPOTrainer(
            _model(),
            even_words,
            tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, **saving)),
            train_dataset=prompts(),
            processing_class=word_tokenizer(),
            rollout_backend=backend,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1") if backend is resumed else None)
    assert len(resumed.started) == 2
