"""Short training runs: what passes from sampling to the loss, what is logged, and what a checkpoint brings back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import thoughtcache as tc
from support.compare import TOLERANCE, max_difference, padded
from support.grpo import base_with_eos, even_words, make_trainer, prompts, quick_arguments, word_tokenizer
from support.models import adapt
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.replay import score_rollouts
from thoughtcache.sampler import decode_step
from thoughtcache.train.trl import trainer as grpo

METRICS = (
    "policy/gap_mean",
    "policy/gap_p99",
    "policy/gap_max",
    "policy/gap_outside_clip",
    "cache/evictions",
    "state/norm_mean",
    "state/norm_max",
    "time/rollout",
    "time/evict",
    "time/prefill",
    "time/draw",
    "time/decode",
    "time/hear",
    "time/move",
    "time/absorb",
    "time/reference",
    "time/replay",
    "time/step",
    "time/rewards",
    "time/backward",
    "time/optimizer",
    "memory/rollout_mib_max",
    "memory/replay_mib_max",
    "memory/backward_mib_max",
    "memory/optimizer_mib_max",
)
ROWS = [{"prompt": text} for text in ("w3 w4", "w3 w4", "w5", "w9 w8 w7")]


def _model(**config: Any) -> Any:
    """Two tokens leave at once, so that segments of several tokens are replayed."""
    return adapt(base_with_eos(dtype=torch.float32), **{"evict_fraction": 0.4, **config})


def _adapter(trainer: tc.ThoughtGRPOTrainer) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def _generate(trainer: tc.ThoughtGRPOTrainer) -> dict[str, Any]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([dict(row) for row in ROWS])


RUNS: dict[str, dict[str, Any]] = {
    "no_reference": {},
    "consistent_reference": {"beta": 0.04},
    "full_reference": {"beta": 0.04, "reference": "full"},
    "two_iterations": {"num_iterations": 2},
    "masked_truncation": {"mask_truncated_completions": True, "beta": 0.04},
    "split_and_accumulated": {"gradient_accumulation_steps": 2, "rollout_batch_size": 3},
    "four_steps_per_generation": {"steps_per_generation": 4, "per_device_train_batch_size": 1},
    "detached": {"gradient": "detached"},
    "reused_rollouts": {"reuse_rollout": True, "num_iterations": 2, "beta": 0.04},
    "blocks_of_two_segments": {"gradient": "2"},
    "budgets_by_layer": {"reuse_rollout": True, "beta": 0.04},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "budgets_by_layer": {"window": 5, "eviction": "h2o", "eviction_budgets": [7, 3], "positions": "rolling"}
}
"""Adapters other than the default of a run."""


@pytest.mark.parametrize("run", RUNS)
def test_three_steps(run: str, tmp_path: Path) -> None:
    trainer = make_trainer(_model(**ADAPTERS.get(run, {})), tmp_path, **RUNS[run])
    before = _adapter(trainer)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    masked = trainer.args.mask_truncated_completions
    for entry in logged:
        assert math.isfinite(entry["loss"])
        # Where every row is truncated and masked there is nothing to learn from.
        assert (entry["grad_norm"] > 0) is not (masked and entry["completions/clipped_ratio"] == 1.0)
    assert not [name for name in METRICS if name not in logged[0]]
    gaps = [entry["policy/gap_max"] for entry in logged if "policy/gap_max" in entry]
    print(f"largest gap {max(gaps):.1e}")
    assert max(gaps) < TOLERANCE[torch.float32]
    assert logged[0]["policy/gap_outside_clip"] == 0.0
    assert logged[0]["cache/evictions"] > 1
    # A normalised state has norm sqrt(min(G, R)).
    assert logged[0]["state/norm_max"] == pytest.approx(math.sqrt(3), abs=1e-5)
    assert 0 < logged[0]["time/evict"] < logged[0]["time/rollout"]
    unchanged = [name for name, value in _adapter(trainer).items() if torch.equal(value, before[name])]
    # A rule other than the gated one leaves some encoder parameters unused.
    assert not [name for name in unchanged if "encoder" not in name]
    if "kl" in logged[0] and trainer.args.reference == "consistent":
        assert logged[0]["kl"] == 0.0  # the frozen copy of the adapter is the policy still


def test_gap_is_logged_on_the_first_pass_only(tmp_path: Path) -> None:
    trainer = make_trainer(_model(), tmp_path, num_iterations=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert ["policy/gap_max" in entry for entry in logged] == [True, False, True]
    assert [entry["time/rollout"] > 0 for entry in logged] == [True, False, True]


def test_gap_shows_that_the_scored_policy_is_another(tmp_path: Path) -> None:
    trainer = make_trainer(_model(), tmp_path)
    inputs = _generate(trainer)
    trainer._compute_loss(trainer.model, inputs)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1.5)  # the one kind of write that makes no rollout stale, as a fault would
    trainer._compute_loss(trainer.model, inputs)
    metrics = trainer._metrics["train"]
    assert metrics["policy/gap_max"][0] < TOLERANCE[torch.float32]
    assert metrics["policy/gap_max"][1] > 1e-2
    assert metrics["policy/gap_outside_clip"][1] > 0
    trainer.log({})
    assert trainer.state.log_history[-1]["policy/gap_max"] > 1e-2, "the maximum is logged, not the mean"


@pytest.mark.parametrize("changes", [{}, {"steps_per_generation": 2, "gradient_accumulation_steps": 2}])
def test_reused_rollouts_train_the_same_policy(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp64, two iterations: the first pass of every generation starts from the records, the second one cannot."""
    trained = {}
    for reuse in (False, True):
        model = adapt(base_with_eos(dtype=torch.float64), evict_fraction=0.4)
        trainer = make_trainer(model, tmp_path, reuse_rollout=reuse, num_iterations=2, max_steps=4, **changes)
        calls = _Calls()
        monkeypatch.setattr(grpo, "score_rollouts", calls)
        trainer.train()
        trained[reuse] = _adapter(trainer)
        assert any(calls.reuse) is reuse
        assert not all(calls.reuse)
        assert not any(reused and not anchored for reused, anchored in zip(calls.reuse, calls.anchored, strict=True))
    for name, value in trained[False].items():
        assert max_difference(trained[True][name], value) < 1e-8, name


class _Calls:
    """Records how `score_rollouts` was called, and calls it."""

    def __init__(self) -> None:
        self.anchored: list[bool] = []
        self.full_cache: list[bool] = []
        self.reuse: list[bool] = []

    def __call__(self, model: Any, rollouts: Any, options: ReplayOptions) -> tc.TokenLogProbs:
        self.anchored.append(options.anchored)
        self.full_cache.append(options.full_cache)
        self.reuse.append(options.reuse)
        return score_rollouts(model, rollouts, options)


@pytest.mark.parametrize("reference", ["consistent", "full"])
@pytest.mark.parametrize("new_adapter", [True, False])
def test_recorded_states_serve_the_policy_that_sampled_and_no_other(
    reference: str, new_adapter: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of one generation: old policy, reference, first loss, and the second loss after an optimiser step.

    The reference is the base model under a new adapter, and a frozen copy of an adapter that came with the model.
    """
    calls = _Calls()
    monkeypatch.setattr(grpo, "score_rollouts", calls)
    settings = {"beta": 0.04, "num_iterations": 2, "reference": reference, "max_steps": 2}
    if new_adapter:
        config = tc.ThoughtConfig(r=3, num_global_tokens=5, window=5)
        trainer = make_trainer(base_with_eos(dtype=torch.float32), tmp_path, peft_config=config, **settings)
    else:
        trainer = make_trainer(_model(), tmp_path, **settings)
    assert ("ref" in trainer.model.peft_config) is not new_adapter
    trainer.train()
    assert calls.anchored == [True, False, True, False]
    assert calls.full_cache == [False, reference == "full", False, False]


def test_sampling_is_compiled_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: compiled.append(function) or function)
    expected = _generate(make_trainer(_model(), tmp_path))
    assert not compiled
    found = _generate(make_trainer(_model(), tmp_path, compile_rollout=True))
    assert len(compiled) == 2, "decode step, eviction"
    assert torch.equal(found["completion_ids"], expected["completion_ids"])


def test_references_are_the_ones_that_were_asked_for(tmp_path: Path) -> None:
    config = tc.ThoughtConfig(r=3, num_global_tokens=5, window=5)
    found: dict[str, Tensor] = {}
    for reference in ("consistent", "full"):
        model = base_with_eos(dtype=torch.float32)
        trainer = make_trainer(model, tmp_path, peft_config=config, beta=0.04, reference=reference)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
        inputs = _generate(trainer)
        rollouts = trainer._run.generations["train"].rollouts
        with torch.no_grad(), trainer.model.disable_adapter():
            expected = tc.replay(trainer.model, rollouts, anchored=False, full_cache=reference == "full")
        found[reference] = inputs["ref_per_token_logps"]
        assert torch.equal(found[reference], expected.logprobs)
        assert max_difference(inputs["sampling_per_token_logps"], padded(rollouts)) == 0.0
    assert max_difference(found["consistent"], found["full"]) > 1e-2


def test_rows_follow_their_rollouts_through_shuffling(tmp_path: Path) -> None:
    trainer = make_trainer(_model(), tmp_path, num_iterations=2)
    inputs = _generate(trainer)
    real = inputs["completion_mask"].bool()
    assert max_difference(inputs["old_per_token_logps"][real], inputs["sampling_per_token_logps"][real]) < 1e-5
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {k: v[order] if isinstance(v, Tensor) and v.ndim else v for k, v in inputs.items()}
    loss = trainer._compute_loss(trainer.model, inputs)
    assert torch.allclose(trainer._compute_loss(trainer.model, shuffled), loss, atol=1e-6)
    with pytest.raises(ValueError, match="completions must not be edited"):
        trainer._compute_loss(trainer.model, {**shuffled, "rollout_index": inputs["rollout_index"]})


def test_nothing_is_scored_outside_of_a_generation_or_loss(tmp_path: Path) -> None:
    trainer = make_trainer(_model(), tmp_path)
    inputs = _generate(trainer)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    trainer._compute_loss(trainer.model, inputs)
    with pytest.raises(RuntimeError, match="outside of a generation and of a loss"):
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, ids, inputs["completion_ids"].shape[1])


def test_every_generation_has_a_seed_of_its_own(tmp_path: Path) -> None:
    trainer = make_trainer(_model(), tmp_path)
    other = make_trainer(_model(), tmp_path, seed=8)
    seeds = []
    for step in (0, 1):
        for current in (trainer, other):
            current.state.global_step = step
            for mode in (True, False, True):
                current.model.train(mode)
                seeds.append(current._rollout_seed())
    assert len(set(seeds)) == len(seeds)
    again = make_trainer(_model(), tmp_path)
    again.model.train()
    again.state.global_step = 1
    assert again._rollout_seed() == seeds[6], "a resumed run draws what the uninterrupted one drew"


def test_every_process_draws_numbers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    for index in (0, 1, 2):
        trainer = make_trainer(_model(), tmp_path)
        monkeypatch.setattr(type(trainer.accelerator), "process_index", index)
        trainer.model.train()
        seeds.append(trainer._rollout_seed())
    assert len(set(seeds)) == 3


def test_passes_in_pieces_score_every_row_of_a_generation(tmp_path: Path) -> None:
    """TRL scores a generation batch for the old policy and the reference in pieces of one micro-batch."""
    changes = {"per_device_train_batch_size": 1, "steps_per_generation": 4, "num_iterations": 2, "beta": 0.04}
    config = tc.ThoughtConfig(r=3, num_global_tokens=5, window=5)
    trainer = make_trainer(base_with_eos(dtype=torch.float32), tmp_path, peft_config=config, **changes)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
    inputs = _generate(trainer)
    rollouts = trainer._run.generations["train"].rollouts
    with torch.no_grad(), trainer.model.disable_adapter():
        reference = tc.replay(trainer.model, rollouts, anchored=False).logprobs
    assert len({tuple(row.token_ids) for row in rollouts}) == len(rollouts) == 4
    assert max_difference(inputs["old_per_token_logps"], padded(rollouts)) < TOLERANCE[torch.float32]
    assert max_difference(inputs["ref_per_token_logps"], reference) < TOLERANCE[torch.float32]
    assert max_difference(inputs["ref_per_token_logps"], padded(rollouts)) > 1e-2


def test_the_gap_is_what_lies_between_the_recorded_and_the_replayed_policy(tmp_path: Path) -> None:
    """Two tokens are recorded wrongly on purpose, one too low and one too high by 0.3 nats."""
    trainer = make_trainer(_model(), tmp_path, epsilon=0.2, epsilon_high=0.5)
    inputs = _generate(trainer)
    generation = trainer._run.generations["train"]
    for row, error in ((1, -0.3), (3, 0.3)):
        record = generation.rollouts[row]
        wrong = record.logprobs.clone()
        wrong[-1] += error
        generation.rollouts[row] = replace(record, logprobs=wrong)
    trainer._compute_loss(trainer.model, inputs)
    count = sum(len(row.token_ids) for row in generation.rollouts)
    found = {name: values for name, values in trainer._metrics["train"].items() if name.startswith("policy/")}
    expected = {
        "policy/gap_mean": [0.6 / count],
        "policy/gap_p99": [0.3],  # fewer than a hundred tokens: the largest
        "policy/gap_max": [0.3],
        # exp(0.3) = 1.35 lies below 1 + 0.5, exp(-0.3) = 0.74 below 1 - 0.2
        "policy/gap_outside_clip": [1 / count],
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=TOLERANCE[torch.float32]), name
    assert count < 100


def test_evaluation_between_two_iterations_leaves_the_training_rollouts_alone(tmp_path: Path) -> None:
    changes = {"num_iterations": 2, "max_steps": 2}
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    trainer = tc.ThoughtGRPOTrainer(
        _model(),
        even_words,
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, **changes, **evaluation)),
        train_dataset=prompts(),
        eval_dataset=prompts(2),
        processing_class=word_tokenizer(),
    )
    trainer.train()
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert max(entry["eval_policy/gap_max"] for entry in evaluated) < TOLERANCE[torch.float32]
    plain = make_trainer(_model(), tmp_path, **changes)
    plain.train()
    ours, theirs = _adapter(trainer), _adapter(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_prompt_window_and_plain_lora_train(tmp_path: Path) -> None:
    for config in ({"window": "prompt"}, {"window": 4, "initial_state": "identity", "absorb": False, "r": 5}):
        trainer = make_trainer(_model(**config), tmp_path, max_steps=1)
        trainer.train()
        logged = trainer.state.log_history[0]
        assert logged["policy/gap_max"] < TOLERANCE[torch.float32]
        assert ("state/norm_mean" in logged) is (config["window"] == "prompt")


@pytest.mark.parametrize("settings", [{}, {"beta": 0.04, "gradient_accumulation_steps": 2}], ids=["plain", "kl"])
def test_a_resumed_run_equals_an_uninterrupted_one(settings: dict[str, Any], tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, **settings}
    whole = make_trainer(_model(), tmp_path / "whole", **saving)
    whole.train()
    resumed = make_trainer(_model(), tmp_path / "resumed", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected, found = _adapter(whole), _adapter(resumed)
    start = {name: value for name, value in _model().named_parameters() if value.requires_grad}
    assert not any(torch.equal(start[name], expected[name]) for name in start if "encoder" not in name)
    differences = {name: max_difference(found[name], expected[name]) for name in expected}
    print(f"largest difference {max(differences.values()):.1e}")
    assert max(differences.values()) == 0.0, differences


def test_a_checkpoint_is_a_peft_adapter(tmp_path: Path) -> None:
    import peft

    trainer = make_trainer(_model(), tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    loaded = peft.PeftModel.from_pretrained(base_with_eos(dtype=torch.float32), tmp_path / "checkpoint-1")
    rollouts = trainer._run.generations["train"].rollouts
    with torch.no_grad():
        expected = tc.replay(trainer.model, rollouts, anchored=False).logprobs
        assert torch.equal(tc.replay(loaded, rollouts, anchored=False).logprobs, expected)
