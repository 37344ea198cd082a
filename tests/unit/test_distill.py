"""Cache distillation: divergences by hand, exact gradients, the student's schedule, resume, and that it teaches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from tests.support.compare import assert_close, assert_gradients_match, gradients, padded
from tests.support.models import tiny_base, tiny_model, trainable
from tests.support.rollouts import PROMPTS
from torch import Tensor
from transformers import TrainerCallback

import thoughtcache as tc
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.replay import run_replay
from thoughtcache.policy import scores
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import open_policy
from thoughtcache.recipes.embedded.arms import thought_best
from thoughtcache.sampler.given import rollouts_of_given
from thoughtcache.tasks.embedded.problem import sample_problems
from thoughtcache.tasks.embedded.reasoner import encode_prompt, load_reasoner
from thoughtcache.train import distill as module
from thoughtcache.train.arguments import training_arguments
from thoughtcache.train.distill import DistillTrainer, distill, sample_teacher, under_window
from thoughtcache.train.distill_config import DistillConfig
from thoughtcache.train.divergence import DIVERGENCES

LENGTH = 12
TEMPERATURE = 0.7

# teacher p = (1/2, 1/4, 1/4), student q = (1/8, 1/8, 3/4), sampled token 2
BY_HAND = {
    "forward_kl": 0.5 * math.log(4) + 0.25 * math.log(2) + 0.25 * math.log(1 / 3),
    "reverse_kl": 0.125 * math.log(1 / 4) + 0.125 * math.log(1 / 2) + 0.75 * math.log(3),
    "cross_entropy": -math.log(3 / 4),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_by_hand(name: str) -> None:
    teacher = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()
    student = torch.tensor([[1 / 8, 1 / 8, 3 / 4]], dtype=torch.float64).log()
    (value,) = DIVERGENCES[name](student, teacher, torch.tensor([2])).tolist()
    assert value == pytest.approx(BY_HAND[name], rel=1e-12)


def config(folder: Path | str = "", **changes: Any) -> DistillConfig:
    settings = {
        "output_dir": str(folder),
        "num_steps": 4,
        "batch_size": 2,
        "warmup_steps": 1,
        "max_new_tokens": LENGTH,
        "temperature": TEMPERATURE,
        "log_every": 1,
    }
    return DistillConfig(**{**settings, **changes})


def trainer_of(model: PeftModel, folder: Path, loss: str) -> DistillTrainer:
    return DistillTrainer(
        distill_config=config(folder, loss=loss),
        evaluator=None,
        model=model,
        args=training_arguments(config(folder)),
        data_collator=module.longest_first,
    )


def naive_loss(model: PeftModel, rows: list[tc.Rollout], name: str) -> Tensor:
    """Mean over all tokens of the divergence, from full logits, row by row, as the definition says it."""
    per_token = []
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.token_ids])
        with torch.no_grad(), model.disable_adapter():
            teacher = model(input_ids=ids).logits
        thoughts = slice(len(row.prompt_ids) - 1, -1)
        if row.settings.window is None:
            student = model(input_ids=ids).logits[0, thoughts]
        else:  # the replay's hidden states are proved elsewhere; head, softmax, divergence and mean are naive
            batch = batch_rollouts([row], torch.device("cpu"))
            (hidden,) = run_replay(model, batch, lambda h, *_: (h,), ReplayOptions(anchored=False))
            student = open_policy(model).head(hidden[0])
        p = (teacher[0, thoughts] / TEMPERATURE).softmax(dim=-1)
        q = (student / TEMPERATURE).softmax(dim=-1)
        for t, token in enumerate(row.token_ids):
            if name == "forward_kl":
                per_token.append((p[t] * (p[t] / q[t]).log()).sum())
            elif name == "reverse_kl":
                per_token.append((q[t] * (q[t] / p[t]).log()).sum())
            else:
                per_token.append(-q[t, token].log())
    return torch.stack(per_token).mean()


def students(model: PeftModel) -> list[tc.Rollout]:
    """Teacher samples of unequal lengths under the student's schedule."""
    samples = sample_teacher(model, PROMPTS, config())
    cut = [
        replace(sample, token_ids=sample.token_ids[: LENGTH - 3 * row], logprobs=sample.logprobs[: LENGTH - 3 * row])
        for row, sample in enumerate(samples)
    ]
    return under_window(cut, model.base_model.thought_config)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_loss_and_gradient_equal_the_naive_computation(name: str, window: int | None, tmp_path: Path) -> None:
    model = tiny_model(window=window)
    rows = students(model)
    trainer = trainer_of(model, tmp_path, name)
    assert_close(trainer.compute_loss(model, {"rollouts": rows}), naive_loss(model, rows, name))
    actual = gradients(model, lambda: trainer.compute_loss(model, {"rollouts": rows}))
    assert_gradients_match(actual, gradients(model, lambda: naive_loss(model, rows, name)))


def test_chunks_change_neither_value_nor_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(window=3)
    rows = students(model)
    trainer = trainer_of(model, tmp_path, "forward_kl")

    def loss() -> Tensor:
        return trainer.compute_loss(model, {"rollouts": rows})

    whole, expected = loss().detach(), gradients(model, loss)
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", 60)  # two rows at a time
    assert_close(loss().detach(), whole)
    assert_gradients_match(gradients(model, loss), expected)


@pytest.mark.parametrize("chunk_tokens", [1, 4])
def test_the_teacher_runs_in_chunks(chunk_tokens: int) -> None:
    model = tiny_model(window=3)
    batch = batch_rollouts(students(model), torch.device("cpu"))
    whole = module.teacher_hidden(model, batch)
    columns: list[int] = []
    model.base_model.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: columns.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert_close(module.teacher_hidden(model, batch, chunk_tokens=chunk_tokens)[batch.mask], whole[batch.mask])
    assert max(columns) == chunk_tokens
    columns.clear()
    module.distill_loss(model, model, batch.rollouts, config(chunk_tokens=chunk_tokens))
    assert max(columns) == chunk_tokens


def test_the_teacher_is_the_base_with_its_full_cache() -> None:
    model = tiny_model(window=3)
    samples = sample_teacher(model, PROMPTS, config(samples_per_prompt=2))
    assert [sample.prompt_ids for sample in samples] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert samples[0].token_ids != samples[1].token_ids
    assert all(sample.settings.window is None and not sample.evictions for sample in samples)
    base = tiny_base()
    for sample in samples:
        logits = base(torch.tensor([sample.prompt_ids + sample.token_ids])).logits[0, len(sample.prompt_ids) - 1 : -1]
        logprobs = (logits / TEMPERATURE).log_softmax(dim=-1)
        assert_close(sample.logprobs, logprobs.gather(-1, torch.tensor(sample.token_ids)[:, None])[:, 0].detach())


@pytest.mark.parametrize(
    ("window", "fraction", "resolved", "leave", "points"),
    [
        (5, 0.25, 5, 1, (5, 6, 7, 8, 9, 10)),  # 12 tokens are 11 inputs
        (5, 0.4, 5, 2, (5, 7, 9)),
        (10, 0.4, 10, 4, (10,)),
        (11, 0.4, 11, 4, ()),
        ("prompt", 0.25, 7, 2, (7, 9)),  # the longest prompt has 7 tokens
        (None, 0.25, None, None, ()),
    ],
)
def test_samples_get_the_schedule_of_the_student(
    window: int | str | None, fraction: float, resolved: int | None, leave: int | None, points: tuple[int, ...]
) -> None:
    model = tiny_model(window=window, evict_fraction=fraction)
    samples = sample_teacher(model, PROMPTS, config())
    for before, after in zip(samples, under_window(samples, model.base_model.thought_config), strict=True):
        assert after.token_ids == before.token_ids
        assert (after.settings.window, after.settings.num_evicted, after.states) == (resolved, leave, None)
        assert tuple(eviction.before_token for eviction in after.evictions) == points
        assert all(eviction.num_tokens == leave and eviction.slots is None for eviction in after.evictions)


def test_filtered_samples_are_refused() -> None:
    model = tiny_model(window=3)
    plain = sample_teacher(model, PROMPTS, config())
    filtered = tc.rollout(model, PROMPTS, max_new_tokens=3, window=None, top_k=2)
    with pytest.raises(ValueError, match=rf"sample {len(plain)} was drawn with TokenFilters\(top_k=2.*without them"):
        tc.distill(model, PROMPTS, config(), samples=[*plain, *filtered])


@pytest.mark.parametrize("positions", ["absolute", "rolling"])
@pytest.mark.parametrize("eviction", ["h2o", "random", "snapkv"])
def test_a_policy_that_chooses_goes_through_the_samples_first(eviction: str, positions: str, tmp_path: Path) -> None:
    """Loss and gradient are those of what the student would have chosen, under its weights of the moment."""
    model = tiny_model(window=5, evict_fraction=0.4, eviction=eviction, positions=positions)
    rows = students(model)
    chosen = rollouts_of_given(model, rows)
    assert [row.token_ids for row in chosen] == [row.token_ids for row in rows]
    assert any(not torch.equal(event.slots[0, 0], torch.arange(2)) for row in chosen for event in row.evictions)
    if eviction != "random":
        assert_close(tc.naive_logprobs(model, chosen, choose=True).logprobs, padded(chosen))
    trainer = trainer_of(model, tmp_path, "forward_kl")
    assert_close(trainer.compute_loss(model, {"rollouts": rows}), naive_loss(model, chosen, "forward_kl"))
    actual = gradients(model, lambda: trainer.compute_loss(model, {"rollouts": rows}))
    assert_gradients_match(actual, gradients(model, lambda: naive_loss(model, chosen, "forward_kl")))


@pytest.mark.parametrize("eviction", ["h2o", "snapkv"])
def test_distillation_under_a_policy_that_scores(eviction: str, tmp_path: Path) -> None:
    model = tiny_model(window=5, evict_fraction=0.4, eviction=eviction)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    tc.distill(model, PROMPTS, config(tmp_path, num_steps=2))
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "l2"}, "loss='l2' is not known; choose one of"),
        ({"gradient": 0}, "gradient=0 is not known"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_nothing_to_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompts were given to distil on"):
        distill(tiny_model(), [], config(tmp_path))
    with pytest.raises(ValueError, match="holds no whole checkpoint; start without resume"):
        distill(tiny_model(), PROMPTS, config(tmp_path, resume=True))


class _Interrupt(TrainerCallback):
    """Ctrl-C after two steps, once the checkpoint is written."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_an_interrupted_distillation_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_every": 2, "learning_rate": 1e-2}
    whole = tiny_model(window=3)
    distill(whole, PROMPTS, config(tmp_path / "whole", **settings))
    start = {name: p.detach().clone() for name, p in trainable(tiny_model(window=3)).items()}

    with pytest.raises(KeyboardInterrupt):
        distill(tiny_model(window=3), PROMPTS, config(tmp_path / "parts", **settings), callbacks=[_Interrupt()])
    torch.manual_seed(99)  # another process starts from other random numbers
    resumed = tiny_model(window=3, seed=5)  # and its adapter from other weights: all comes from the checkpoint
    distill(resumed, PROMPTS, config(tmp_path / "parts", resume=True, **settings))

    expected = trainable(whole)
    for name, parameter in trainable(resumed).items():
        assert not torch.equal(expected[name], start[name]), f"{name} was not trained"
        assert torch.equal(parameter, expected[name]), name


def test_a_few_steps_on_the_packaged_reasoner_lower_the_divergence(tmp_path: Path) -> None:
    base, tokenizer = load_reasoner()
    model = peft.get_peft_model(base, thought_best(16, 8, lora_alpha=32))
    prompts = [encode_prompt(tokenizer, p.prompt) for p in sample_problems("chains", 48, "train", 0)]
    settings = DistillConfig(
        output_dir=str(tmp_path), num_steps=12, batch_size=8, warmup_steps=2, max_new_tokens=56, log_every=1
    )
    evaluations: list[float] = []
    held_out = under_window(sample_teacher(model, prompts[40:], settings), model.base_model.thought_config)

    def evaluate() -> None:
        with torch.no_grad():
            trainer = trainer_of(model, tmp_path, "forward_kl")
            evaluations.append(trainer.compute_loss(model, {"rollouts": held_out}).item())

    evaluate()
    result = distill(model, prompts[:40], settings)
    evaluate()
    before, after = evaluations
    assert after < 0.8 * before, evaluations
    assert [record["step"] for record in result.history if "loss" in record] == list(range(1, 13))
    assert result.elapsed_seconds > 0
