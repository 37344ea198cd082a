"""The policy that distillation teaches is the one that samples afterwards, position by position."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close, padded
from support.models import tiny_model
from support.rollouts import PROMPTS
from thoughtcache.train.distill import distill, sample_teacher, under_window
from thoughtcache.train.distill_config import DistillConfig

LENGTH = 12


@pytest.mark.parametrize(
    ("positions", "window"),
    [("absolute", None), *product(("absolute", "rolling"), (3, "prompt", 40))],  # rolling needs a window
)
def test_the_student_is_scored_as_it_samples(positions: str, window: int | str | None) -> None:
    model = tiny_model(window=window, positions=positions)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
    taught = [replace(row, settings=row.settings.with_full_cache(), evictions=(), states=None) for row in rollouts]
    student = under_window(taught, model.base_model.thought_config)
    for ours, sampled in zip(student, rollouts, strict=True):
        assert ours.settings == sampled.settings
        assert [event.before_token for event in ours.evictions] == [event.before_token for event in sampled.evictions]
    with torch.no_grad():
        assert_close(tc.replay(model, student, anchored=False).logprobs, padded(rollouts))
        assert_close(tc.naive_logprobs(model, student).logprobs, padded(rollouts))


@pytest.mark.parametrize("positions", ["absolute", "rolling"])
def test_the_student_is_scored_under_its_budgets(positions: str) -> None:
    model = tiny_model(window=6, evict_fraction=1 / 3, eviction_budgets=[8, 4], positions=positions)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
    taught = [replace(row, settings=row.settings.with_full_cache(), evictions=(), states=None) for row in rollouts]
    assert {row.settings.budgets for row in taught} == {None}
    student = under_window(taught, model.base_model.thought_config)
    assert [row.settings for row in student] == [row.settings for row in rollouts]
    with torch.no_grad():
        assert_close(tc.replay(model, student, anchored=False).logprobs, padded(rollouts))


def test_the_teacher_keeps_positions_of_its_own() -> None:
    """Its cache is full, so positions count all tokens, whatever the student's do."""
    model = tiny_model(window=3, positions="rolling")
    samples = sample_teacher(model, PROMPTS, DistillConfig(output_dir="", max_new_tokens=LENGTH))
    assert {sample.settings.positions for sample in samples} == {"absolute"}
    student = under_window(samples, model.base_model.thought_config)
    assert {sample.settings.positions for sample in student} == {"rolling"}


def test_mixed_precision_is_refused_before_anything_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch --mixed_precision bf16` asks for it: samples and evaluations would run without it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr("thoughtcache.train.distill.sample_teacher", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(ValueError, match="mixed_precision='bf16' is not supported under a bounded cache"):
        distill(tiny_model(), PROMPTS, DistillConfig(output_dir=str(tmp_path)))
