"""Numbers and behaviour that docs/method.md and docs/learner.md claim."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.compare import TOLERANCE, assert_close, gradient_error, gradients, max_difference, padded
from support.grpo import base_with_eos, even_words, make_trainer
from support.models import adapt, tiny_model
from support.rollouts import PROMPTS
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.state.rules.common import normalise, rms_normalise, unit
from thoughtcache.train.distill import under_window

METHOD = (Path(__file__).parents[2] / "docs" / "method.md").read_text()
ROWS = [{"prompt": text} for text in ("w3 w4", "w3 w4", "w9 w8 w7", "w9 w8 w7")]
PAIRS = {"num_generations": 2}


def _model(dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    return adapt(base_with_eos(dtype=dtype), **{"evict_fraction": 0.4, **config})


def _generate(trainer: tc.ThoughtGRPOTrainer) -> dict[str, Any]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([dict(row) for row in ROWS])


def _epsilon(row: str) -> float:
    """The epsilon that a row of the table names."""
    (line,) = [line for line in METHOD.splitlines() if line.startswith(f"| {row}")]
    return float(line.split("epsilon = ")[-1].split("`")[0])


def test_epsilons_of_the_state_are_those_of_the_table() -> None:
    x = torch.tensor([[3e-3, -4e-3]], dtype=torch.float64)  # so small that an epsilon shows
    epsilon = _epsilon("`k^`, `v^` (`rms_normalise`)")
    assert_close(rms_normalise(x), x / math.sqrt(12.5e-6 + epsilon))
    assert_close(unit(x), x / math.sqrt(25e-6 + _epsilon("addresses (`unit`)")))
    states = torch.stack([torch.zeros(5, 3), torch.full((5, 3), 1e-9)]).double()
    assert normalise(states)[0].count_nonzero() == 0
    assert normalise(states)[1].norm().item() == pytest.approx(math.sqrt(3), rel=1e-12)


def test_projections_are_divided_by_the_root_of_their_width() -> None:
    encoder = tiny_model().base_model.encoders()[0]
    weights, width = encoder.weights(), encoder.key_projection.shape[1]
    assert width == 8
    assert_close(weights.key_projection, encoder.key_projection / math.sqrt(width))
    assert_close(weights.value_projection, encoder.value_projection / math.sqrt(width))
    assert_close(weights.queries, encoder.global_queries @ encoder.query_projection.T / math.sqrt(width))


def test_advantages_are_those_of_the_table(tmp_path: Path) -> None:
    trainer = make_trainer(_model(), tmp_path, **PAIRS)
    inputs = _generate(trainer)
    texts = trainer._tokenizer.batch_decode(
        [row.token_ids for row in trainer._run.generations["train"].rollouts], skip_special_tokens=True
    )
    rewards = torch.tensor(even_words(texts)).view(2, 2)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    expected = centred / (rewards.std(dim=1, correction=1, keepdim=True) + _epsilon("advantages (TRL)"))
    assert centred.count_nonzero() > 0
    assert max_difference(inputs["advantages"], expected.flatten()) < 1e-5


def test_learning_rates_are_those_of_the_table(tmp_path: Path) -> None:
    assert RunConfig().grpo_learning_rate == 1e-5
    settings = tc.ThoughtGRPOConfig(str(tmp_path), use_cpu=True, report_to="none")
    assert (settings.learning_rate, settings.max_grad_norm) == (1e-6, 1.0)


def test_the_window_of_the_prompt_is_resolved_over_a_call(tmp_path: Path) -> None:
    model = tiny_model(window="prompt")
    for options in ({}, {"batch_size": 1}, {"rows": [1, 3]}):
        rollouts = tc.rollout(model, PROMPTS, max_new_tokens=4, **options)
        assert {row.settings.window for row in rollouts} == {7}
    (alone,) = tc.rollout(model, PROMPTS[1:2], max_new_tokens=4)
    assert alone.settings.window == 2
    samples = tc.rollout(model, PROMPTS, max_new_tokens=4, window=None)
    assert {row.settings.window for row in under_window(samples, model.base_model.thought_config)} == {7}
    micro_batches = {**PAIRS, "per_device_train_batch_size": 2, "steps_per_generation": 2}
    trainer = make_trainer(_model(window="prompt"), tmp_path, **micro_batches)
    _generate(trainer)
    assert {row.settings.window for row in trainer._run.generations["train"].rollouts} == {3}


def test_accumulation_spreads_a_group_over_micro_batches(tmp_path: Path) -> None:
    """Rows 0 and 1 answer one prompt, 2 and 3 the other."""
    together = make_trainer(_model(), tmp_path, **PAIRS)
    together.model.train()
    (whole,) = [together._prepare_inputs([dict(row) for row in ROWS])]
    assert sorted(whole["rollout_index"].tolist()) == [0, 1, 2, 3]
    apart = {**PAIRS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    found = set()
    for seed in range(4):
        trainer = make_trainer(_model(), tmp_path, **apart)
        trainer.model.train()
        torch.manual_seed(seed)
        found.add(tuple(sorted(trainer._prepare_inputs([dict(row) for row in ROWS])["rollout_index"].tolist())))
    assert found - {(0, 1), (2, 3)}


@pytest.mark.parametrize("reference", ["consistent", "full"])
def test_the_reference_of_an_adapted_model_is_a_frozen_copy_of_its_adapter(reference: str, tmp_path: Path) -> None:
    model, untouched = _model(), _model()
    trainer = make_trainer(model, tmp_path, beta=0.04, reference=reference, **PAIRS)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B.default" in name:
                parameter.mul_(1.5)
    inputs = _generate(trainer)
    rollouts = trainer._run.generations["train"].rollouts
    with torch.no_grad():
        copy = tc.replay(untouched, rollouts, anchored=False, full_cache=reference == "full").logprobs
        with untouched.disable_adapter():
            base = tc.replay(untouched, rollouts, anchored=False, full_cache=reference == "full").logprobs
    assert max_difference(inputs["ref_per_token_logps"], copy) < TOLERANCE[torch.float32]
    assert max_difference(inputs["ref_per_token_logps"], base) > 1e-2
    assert max_difference(inputs["ref_per_token_logps"], padded(rollouts)) > 1e-2


@pytest.mark.parametrize("corrected", [True, False])
def test_the_gradient_of_the_kl_term_is_the_one_that_is_written_down(corrected: bool, tmp_path: Path) -> None:
    """fp64, on policy, no advantages: what is left is the mean KL term over the tokens of the batch."""
    model = _model(dtype=torch.float64)
    options = {} if corrected else {"use_bias_correction_kl": False}  # the default is the correction
    trainer = make_trainer(model, tmp_path, beta=0.3, **PAIRS, **options)
    inputs = _generate(trainer)
    rollouts = trainer._run.generations["train"].rollouts
    inputs["advantages"] = torch.zeros(4)
    inputs["ref_per_token_logps"] = inputs["ref_per_token_logps"] + 0.4 * torch.randn(
        inputs["ref_per_token_logps"].shape, dtype=torch.float64
    )

    def written() -> torch.Tensor:
        out = tc.replay(model, rollouts)
        d = (out.logprobs - inputs["ref_per_token_logps"]).detach()
        weight = d if corrected else 1 - (-d).exp()
        return 0.3 * (weight * out.logprobs * out.mask).sum() / out.mask.sum()

    found = gradients(model, lambda: trainer._compute_loss(model, inputs))
    assert gradient_error(found, gradients(model, written)) < 1e-6  # TRL keeps recorded log-probabilities in fp32
    assert max(value.abs().max() for value in found.values()) > 1e-2
