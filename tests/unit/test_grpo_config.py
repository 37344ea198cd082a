"""What the trainer refuses, the numbers it logs, and the private signatures of TRL that it relies on."""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import HfArgumentParser
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

import thoughtcache as tc
from support.grpo import base_with_eos, even_words, make_trainer, prompts, quick_arguments, word_tokenizer
from support.models import adapt, tiny_base
from thoughtcache.learner.options import SAVINGS, left_to_the_planner
from thoughtcache.measuring.phase_timer import PHASES, PhaseTimer
from thoughtcache.records import Continuation, SamplingSettings
from thoughtcache.train.trl.encoder_precision import encoders_to_fp32
from thoughtcache.train.trl.policy_metrics import cache_metrics, cache_totals, gap_metrics, sampled_log_ratio

FIELDS = {field.name for field in dataclasses.fields(GRPOConfig)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in FIELDS else "gradient_checkpointing"
REFUSED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.0},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 50},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "generation_kwargs": {"generation_kwargs": {"no_repeat_ngram_size": 3}},
    "cache_implementation": {"cache_implementation": "static"},
    "use_vllm": {"use_vllm": True},
    "use_transformers_continuous_batching": {"use_transformers_continuous_batching": True},
    "max_completion_length": {"max_completion_length": None},
    "gradient_checkpointing": {CHECKPOINTING: True},
    "mixed_precision": {"bf16": True},
    "bf16_full_eval": {"bf16_full_eval": True},
    "fp16_full_eval": {"fp16_full_eval": True},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "torch_compile": {"torch_compile": True},
    "use_liger_kernel": {"use_liger_kernel": True},
    "entropy_coef": {"entropy_coef": 0.01},
    "use_adaptive_entropy": {"use_adaptive_entropy": True},
    "sync_ref_model": {"sync_ref_model": True, "beta": 0.04},
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_score_another_policy_are_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=.*; use ") as refusal:
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, **REFUSED[name]))
    assert "not supported under a bounded cache" in str(refusal.value)


def test_mixed_precision_is_refused_when_the_launcher_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="mixed_precision='bf16'"):
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": "sometimes"}, "gradient='sometimes' is not known"),
        ({"gradient": "0"}, "gradient='0' is not known"),
        ({"reference": "half"}, "reference='half' is not known"),
        ({"rollout_batch_size": 0}, "rollout_batch_size must be at least 1"),
        ({"chunk_tokens": "half"}, "chunk_tokens='half' is not known"),
        ({"chunk_tokens": "0"}, "chunk_tokens must be at least 1 or None, got 0"),
    ],
)
def test_own_fields_are_checked(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, **changes))


def test_defaults_are_the_exact_gradient_and_the_consistent_reference(tmp_path: Path) -> None:
    config = tc.ThoughtGRPOConfig(**quick_arguments(tmp_path))
    assert (config.replay_options.gradient, config.reference, config.rollout_batch_size) == (
        "exact",
        "consistent",
        None,
    )
    assert not config.gradient_checkpointing  # None in older versions
    assert config.mixed_precision == "no"


@pytest.mark.parametrize(("text", "mode"), [("exact", "exact"), ("detached", "detached"), ("4", 4)])
def test_gradient_is_read_from_the_command_line(text: str, mode: str | int, tmp_path: Path) -> None:
    parser = HfArgumentParser(tc.ThoughtGRPOConfig)
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none", "--gradient", text]
    (config,) = parser.parse_args_into_dataclasses(arguments)
    assert config.replay_options.gradient == mode


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (False, 256, "device")),
        (["--chunk_tokens", "64", "--checkpoint_layers", "True", "--kv_log", "host"], (True, 64, "host")),
        (["--chunk_tokens", "none", "--checkpoint_layers", "False"], (False, None, "device")),
        (["--chunk_tokens", "auto", "--kv_log", "auto"], (False, 256, "device")),
    ],
)
def test_savings_are_read_from_the_command_line(
    words: list[str], expected: tuple[bool, int | None, str], tmp_path: Path
) -> None:
    parser = HfArgumentParser(tc.ThoughtGRPOConfig)
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none", *words]
    (config,) = parser.parse_args_into_dataclasses(arguments)
    options = config.replay_options
    assert (options.checkpoint_layers, options.chunk_tokens, options.kv_log) == expected
    given = {word[2:] for word, value in zip(words[::2], words[1::2], strict=True) if value != "auto"}
    assert set(left_to_the_planner(config)) == set(SAVINGS) - given


def test_gradient_may_be_an_integer(tmp_path: Path) -> None:
    assert tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, gradient=3)).replay_options.gradient == 3


def _trainer(model: Any, folder: Path, *, args: Any = None, **kwargs: Any) -> tc.ThoughtGRPOTrainer:
    arguments = args or tc.ThoughtGRPOConfig(**quick_arguments(folder))
    return tc.ThoughtGRPOTrainer(
        model, even_words, arguments, train_dataset=prompts(), processing_class=word_tokenizer(), **kwargs
    )


def test_a_model_without_thought_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="carries no thought adapter; pass an adapted model"):
        _trainer(base_with_eos(), tmp_path)
    with pytest.raises(ValueError, match="carries no thought adapter"):
        _trainer(peft.get_peft_model(base_with_eos(), peft.LoraConfig(target_modules="all-linear")), tmp_path)
    with pytest.raises(ValueError, match="peft_config must be a ThoughtConfig, got LoraConfig"):
        _trainer(base_with_eos(), tmp_path, peft_config=peft.LoraConfig())


@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_tokens_of_others_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is not supported under a bounded cache"):
        _trainer(adapt(base_with_eos()), tmp_path, **{name: [len]})


def test_trl_own_configuration_is_refused(tmp_path: Path) -> None:
    settings = quick_arguments(tmp_path, bf16=False, **{CHECKPOINTING: False})
    with pytest.raises(ValueError, match="args must be a ThoughtGRPOConfig, got GRPOConfig"):
        _trainer(adapt(base_with_eos()), tmp_path, args=GRPOConfig(**settings))


def test_a_reference_needs_the_adapter_name_that_trl_copies(tmp_path: Path) -> None:
    model = peft.get_peft_model(base_with_eos(), tc.ThoughtConfig(r=3, num_global_tokens=3), adapter_name="mine")
    with pytest.raises(ValueError, match="TRL copies the adapter named 'default'"):
        make_trainer(model, tmp_path, beta=0.04)


def test_encoders_return_to_fp32_after_a_cast_of_all_trainable_parameters() -> None:
    model = adapt(tiny_base(dtype=torch.bfloat16))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    encoders_to_fp32(model)
    dtypes = {("encoder" in n, p.dtype) for n, p in model.named_parameters() if p.requires_grad}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def _record(token_ids: list[int], logprobs: list[float], states: torch.Tensor | None = None) -> tc.Rollout:
    settings = SamplingSettings(
        temperature=1.0, max_new_tokens=3, window=2, num_evicted=1, eviction="sliding", seed=0, ignore_eos=True
    )
    return tc.Rollout(
        prompt_ids=[1],
        token_ids=token_ids,
        logprobs=torch.tensor(logprobs),
        evictions=tuple(tc.Eviction(before_token=2, num_tokens=1) for _ in token_ids[2:]),
        states=states,
        finish_reason="length",
        settings=settings,
    )


def test_gap_metrics_by_hand() -> None:
    rollouts = [_record([4, 5, 6], [-1.0, -1.0, -1.0]), _record([7], [-2.0])]
    replayed = torch.tensor([[-1.0, -0.5, -1.5], [-2.1, 9.0, 9.0]])  # the 9s are padding
    log_ratio = sampled_log_ratio(replayed, rollouts)
    torch.testing.assert_close(log_ratio, torch.tensor([0.0, 0.5, -0.5, -0.1]))
    metrics = gap_metrics(torch.cat([log_ratio, torch.tensor([math.nan])]), 0.2, 0.7)
    # exp(0.5) = 1.65 is inside 1 + 0.7, exp(-0.5) = 0.61 is outside 1 - 0.2, exp(-0.1) = 0.90 is inside.
    assert metrics == pytest.approx(
        {
            "policy/gap_mean": 1.1 / 4,
            "policy/gap_p99": 0.5,
            "policy/gap_max": 0.5,
            "policy/gap_outside_clip": 0.25,
        },
        rel=1e-6,
    )


def test_gap_p99_leaves_out_one_percent() -> None:
    values = torch.arange(1, 201) / 200
    assert gap_metrics(values, 0.2, 0.2)["policy/gap_p99"] == pytest.approx(0.99)


def test_cache_metrics_by_hand() -> None:
    states = torch.stack([torch.eye(2), 3 * torch.eye(2)]).unsqueeze(1)  # [N=2, L=1, G=2, R=2]
    first = cache_totals([_record([4, 5, 6], [0.0] * 3, states), _record([7], [0.0])])
    second = cache_totals([_record([4, 5], [0.0] * 2), _record([4, 5], [0.0] * 2)])
    metrics = cache_metrics(torch.stack([first, second]))
    root = math.sqrt(2)
    assert metrics == pytest.approx(
        {"cache/evictions": 0.25, "state/norm_mean": 2 * root, "state/norm_max": 3 * root, "state/change": 2 / 3},
        rel=1e-6,
    )
    assert cache_metrics(second.unsqueeze(0)) == {"cache/evictions": 0.0}
    # One eviction has nothing to change from; two zero states do not change.
    once = cache_metrics(cache_totals([_record([4, 5], [0.0] * 2, states[:1])]).unsqueeze(0))
    assert "state/change" not in once
    still = cache_metrics(cache_totals([_record([4, 5], [0.0] * 2, 0 * states)]).unsqueeze(0))
    assert still["state/change"] == 0


def test_a_layer_changes_from_its_own_first_eviction_on() -> None:
    """The second layer is full one event later; with two events it has nothing to change from."""
    states = torch.tensor([[[1.0], [1.0]], [[2.0], [1.5]], [[2.0], [3.0]]])
    record = _record([4, 5, 6], [0.0] * 3, states)
    uneven = dataclasses.replace(record, settings=dataclasses.replace(record.settings, budgets=(1, 2)))
    assert cache_totals([uneven])[5:].tolist() == [2, 1 / 2 + 1.5 / 3]
    assert cache_totals([dataclasses.replace(uneven, states=states[:2])])[5:].tolist() == [1, 1 / 2]


def test_links_that_go_on_have_one_state() -> None:
    first, last = (_record([4, 5, 6], [0.0] * 3, torch.full((1, 1, 1), size)) for size in (1.0, 4.0))
    fold = Continuation(first_kept=1, position=4, state=torch.full((1, 1), 2.0))
    last = dataclasses.replace(last, continues=fold)
    assert cache_totals([first, last])[2:].tolist() == [3, 7, 4, 1, 3 / 4]
    alone = dataclasses.replace(last, states=None)
    assert cache_totals([dataclasses.replace(first, states=None), alone])[2:].tolist() == [1, 2, 2, 0, 0]


@pytest.mark.parametrize("shape", [(4,), (2, 2), (2, 1, 2)])
def test_norms_are_of_whole_states_of_any_shape(shape: tuple[int, ...]) -> None:
    """Three states of two layers, each of four ones, so of norm 2; those of two memories are numbers side by side."""
    totals = cache_totals([_record([4, 5, 6], [0.0] * 3, torch.ones(3, 2, *shape))])
    assert totals[2:].tolist() == [6, 12, 2, 2, 0]


def test_phase_timer_adds_up_and_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0, 100.0, 105.0])
    monkeypatch.setattr("thoughtcache.measuring.phase_timer.time.perf_counter", lambda: next(clock))
    timer = PhaseTimer(torch.device("cpu"))
    with timer.phase("rollout"):  # from 0 to 10, with absorb from 1 to 3 inside
        timer.begin("absorb")
        timer.end()
    with timer.phase("rollout"):  # from 100 to 105
        pass
    assert timer.flush() == {**dict.fromkeys(PHASES, 0.0), "rollout": 15.0, "absorb": 2.0}
    assert timer.flush() == dict.fromkeys(PHASES, 0.0)


SIGNATURES = {
    "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    "_generate_and_score_completions": ["inputs"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["model", "inputs"],
    "log": ["logs", "start_time"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
}
SCORING_PREFIX = [
    "model",
    "input_ids",
    "attention_mask",
    "logits_to_keep",
    "batch_size",
    "compute_entropy",
    "compute_aux_loss",
]
CHANGED = (
    "TRL changed GRPOTrainer.{name}: read it, adapt train/trl/trainer.py, then this test and the pin in pyproject.toml"
)


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)[1:]


@pytest.mark.parametrize("name", SIGNATURES)
def test_trl_still_has_the_seam(name: str) -> None:
    message = CHANGED.format(name=name)
    assert _parameters(getattr(GRPOTrainer, name, lambda self: None)) == SIGNATURES[name], message
    assert _parameters(getattr(tc.ThoughtGRPOTrainer, name)) == SIGNATURES[name], message


def test_trl_still_scores_through_one_method() -> None:
    name = "_get_per_token_logps_and_entropies"
    message = CHANGED.format(name=name)
    assert _parameters(getattr(GRPOTrainer, name))[: len(SCORING_PREFIX)] == SCORING_PREFIX, message
    for caller in ("_compute_loss", "_generate_and_score_completions"):
        assert f"self.{name}(" in inspect.getsource(getattr(GRPOTrainer, caller)), CHANGED.format(name=caller)
    forward_calls = inspect.getsource(GRPOTrainer._compute_loss).count("model(")
    assert forward_calls == 0, CHANGED.format(name="_compute_loss")


def test_trl_still_names_its_reference_adapter_ref() -> None:
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)' in source, CHANGED.format(
        name="_generate_and_score_completions"
    )
    assert 'model.peft_config["default"]' in inspect.getsource(GRPOTrainer.__init__), CHANGED.format(name="__init__")


def test_trl_still_shuffles_and_splits_along_the_first_dimension() -> None:
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    for step in ("shuffle_sequence_dict(generation_batch)", "split_tensor_dict(generation_batch"):
        assert step in source, CHANGED.format(name="_prepare_inputs")


def test_trl_still_counts_micro_steps_and_tokenizes_where_we_look_ahead() -> None:
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._step % generate_every == 0" in source, CHANGED.format(name="_prepare_inputs")
    assert _parameters(GRPOTrainer._tokenize_prompts) == ["prompts"], CHANGED.format(name="_tokenize_prompts")
    assert "prompt_ids, images, multimodal_fields = self._tokenize_prompts(prompts)" in inspect.getsource(
        GRPOTrainer._generate
    ), CHANGED.format(name="_generate")
