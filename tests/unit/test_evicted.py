"""A window that never evicts teaches nothing: refused or said, as early as it can be known."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import thoughtcache as tc
from support.grpo import word_tokenizer
from support.models import tiny_model
from support.rollouts import PROMPTS
from thoughtcache.recipes import grpo_phase
from thoughtcache.recipes.run.checks import check_link_window, check_prompt_window, check_questions, check_window
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.train.distill import sample_teacher, under_window
from thoughtcache.train.evicted import longest_held

LENGTH = 9


def config(folder: Path, **changes: Any) -> tc.DistillConfig:
    settings = {"num_steps": 1, "batch_size": 2, "warmup_steps": 0, "max_new_tokens": LENGTH, "log_every": 1}
    return tc.DistillConfig(**{"output_dir": str(folder), **settings, **changes})


@pytest.mark.parametrize("window", [LENGTH - 3, LENGTH - 2, LENGTH - 1, LENGTH])
def test_the_longest_rollout_that_a_window_holds(window: int, tmp_path: Path) -> None:
    model = tiny_model(window=window)
    samples = under_window(sample_teacher(model, PROMPTS[:1], config(tmp_path)), model.base_model.thought_config)
    assert len(samples[0].token_ids) == LENGTH
    assert bool(samples[0].evictions) == (longest_held(window) < LENGTH)


def test_distillation_without_an_eviction_is_refused_or_asked_for(tmp_path: Path) -> None:
    model = tiny_model(window=LENGTH - 1)
    message = rf"none of the 2 .*longest has {LENGTH} .*window={LENGTH - 1} .*below {LENGTH - 1}, or allow_no_eviction"
    with pytest.raises(ValueError, match=message):
        tc.distill(model, PROMPTS[:2], config(tmp_path))
    assert len(tc.distill(model, PROMPTS[:2], config(tmp_path, allow_no_eviction=True)).history) > 0
    assert len(tc.distill(tiny_model(window=LENGTH - 2), PROMPTS[:2], config(tmp_path)).history) > 0


def test_one_long_answer_is_enough(tmp_path: Path) -> None:
    model = tiny_model(window=4)
    long, short = sample_teacher(model, PROMPTS[:2], config(tmp_path))
    short = replace(short, token_ids=short.token_ids[:5], logprobs=short.logprobs[:5])
    with pytest.raises(ValueError, match="none of the 1 teacher samples"):
        tc.distill(model, (), config(tmp_path), samples=[short])
    tc.distill(model, (), config(tmp_path), samples=[short, long])


def test_a_student_with_the_full_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"window=None keeps the full cache, which is the teacher's.*give a window"):
        tc.distill(tiny_model(window=None), PROMPTS[:2], config(tmp_path))


def test_samples_without_a_token_are_refused(tmp_path: Path) -> None:
    model = tiny_model(window=4)
    (sample,) = sample_teacher(model, PROMPTS[:1], config(tmp_path))
    with pytest.raises(ValueError, match="no teacher sample holds a token"):
        tc.distill(model, (), config(tmp_path), samples=[replace(sample, token_ids=[], logprobs=sample.logprobs[:0])])


def run(**changes: Any) -> RunConfig:
    return RunConfig(**{"model": "m", "dataset": "d", "max_new_tokens": 64, **changes})


@pytest.mark.parametrize(
    ("settings", "window", "message"),
    [
        ({}, 62, None),
        ({}, 63, "--window 63 holds all thoughts of --max-new-tokens 64"),
        ({}, 1024, "lower --window, raise --max-new-tokens, or pass --allow-no-eviction"),
        ({"distill_steps": 0}, 1024, "--window 1024 holds all"),
        ({"allow_no_eviction": True}, 1024, None),
        ({}, None, "--window none keeps the full cache.*--distill-steps 0"),
        ({"distill_steps": 0}, None, None),
        ({}, "prompt", None),
    ],
)
def test_a_window_that_holds_everything_is_refused_before_anything_is_read(
    settings: dict[str, Any], window: Any, message: str | None
) -> None:
    def check() -> None:
        check_window(run(**settings), tc.ThoughtConfig(window=window))

    if message is None:
        check()
    else:
        with pytest.raises(ValueError, match=message):
            check()


def test_prompts_longer_than_the_answers_are_refused_as_a_window() -> None:
    prompts = [[3] * 70, [3] * 63]
    with pytest.raises(ValueError, match="--window prompt is at least 63 thoughts here"):
        check_prompt_window(run(), tc.ThoughtConfig(window="prompt"), prompts, 4)
    check_prompt_window(run(), tc.ThoughtConfig(window="prompt"), [*prompts, [3] * 62], 4)
    check_prompt_window(run(), tc.ThoughtConfig(window=5), prompts, 4)
    check_prompt_window(run(allow_no_eviction=True), tc.ThoughtConfig(window="prompt"), prompts, 4)


@pytest.mark.parametrize(
    ("thinking", "window", "message"),
    [
        (tc.MarkovianThinking(context=40, keep_first=1, keep_last=19), 38, None),
        (tc.MarkovianThinking(context=40, keep_first=1, keep_last=19), 39, "--window 39 holds all .* 40 at most"),
        (tc.MarkovianThinking(context=40, keep_first=1, keep_last=19), None, None),
        (tc.MarkovianThinking(context=40, keep_first=1, keep_last=19), "prompt", None),
        (
            tc.MarkovianThinking(context=9, keep_first=1, keep_last=2),
            "prompt",
            "--window prompt is at least 30 thoughts",
        ),
        (tc.StepFolding(opening=[7], closing=[8], step_tokens=20), 19, "raise the thinking option step_tokens"),
        (tc.StepFolding(opening=[7], closing=[8]), 63, "raise --max-new-tokens, give --window none"),
        (None, 1024, None),
    ],
)
def test_a_window_that_holds_every_link_is_refused(thinking: Any, window: Any, message: str | None) -> None:
    prompts, thought = [[3] * 30, [3] * 45], tc.ThoughtConfig(window=window)
    check_link_window(run(allow_no_eviction=True), thought, prompts, thinking, 4)
    if message is None:
        check_link_window(run(), thought, prompts, thinking, 4)
    else:
        with pytest.raises(ValueError, match=message):
            check_link_window(run(), thought, prompts, thinking, 4)


PYRAMID = tc.ThoughtConfig(window=64, eviction_budgets="pyramid")
"""In four layers 100, 84, 52 and 20 thoughts."""


def test_the_smallest_budget_is_what_must_not_hold_everything() -> None:
    """The first thought leaves the layer that holds fewest, long before the window is full."""
    smallest = PYRAMID.resolve_window(None, num_layers=4).smallest_budget
    assert smallest is not None
    assert smallest < 60 < 64
    for length in (60, smallest + 2):
        own = run(max_new_tokens=length)
        check_window(own, PYRAMID)
        check_prompt_window(own, PYRAMID, [[3]], 4)
    check_window(run(max_new_tokens=smallest + 1), PYRAMID)  # not known yet
    with pytest.raises(ValueError, match=f"--eviction-budgets is at least {smallest} thoughts here, and holds all"):
        check_prompt_window(run(max_new_tokens=smallest + 1), PYRAMID, [[3]], 4)
    listed = tc.ThoughtConfig(window=64, eviction_budgets=[80, 48])
    check_window(run(max_new_tokens=50), listed)
    with pytest.raises(ValueError, match="--eviction-budgets is at least 48 thoughts here, and holds all"):
        check_window(run(max_new_tokens=49), listed)


def test_the_smallest_budget_of_prompts_and_of_links() -> None:
    thought = tc.ThoughtConfig(window="prompt", eviction_budgets="pyramid")
    prompts = [[3] * 64, [3] * 80, [3] * 2]  # two thoughts cannot be shared out
    check_prompt_window(run(max_new_tokens=60), thought, prompts, 4)
    with pytest.raises(ValueError, match="--window prompt with these --eviction-budgets is at least"):
        check_prompt_window(run(max_new_tokens=5), thought, prompts, 4)
    thinking = tc.MarkovianThinking(context=60, keep_first=1, keep_last=19)
    check_link_window(run(max_new_tokens=200), PYRAMID, [[3]], thinking, 4)
    short = tc.MarkovianThinking(context=10, keep_first=1, keep_last=2)
    with pytest.raises(ValueError, match="holds all thoughts of a link, which are 10 at most"):
        check_link_window(run(max_new_tokens=200), PYRAMID, [[3]], short, 4)


def test_fewer_questions_than_a_step_takes_are_refused() -> None:
    few = run(grpo_batch_size=12, group_size=4)
    check_questions(few, 3)
    with pytest.raises(ValueError, match=r"d gives 2 questions, and a step of GRPO takes 3 .*--grpo-batch-size to 8"):
        check_questions(few, 2)
    check_questions(replace(few, grpo_steps=0), 2)


@pytest.mark.parametrize(("evictions", "warned"), [([0.0, 0.0, 1.0], "2 of 3"), ([1.0, 2.0, 3.0], None)])
def test_steps_of_grpo_without_an_eviction_are_said(
    evictions: list[float], warned: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"step": i, "reward": 0.0, "cache/evictions": value} for i, value in enumerate(evictions)]
    monkeypatch.setattr(grpo_phase, "train_grpo", lambda *_, **__: records)
    text = StringIO()
    grpo_phase.grpo_phase(run(), None, word_tokenizer(), [], tmp_path, False, Console(file=text, width=200))
    assert (f"in {warned} steps of GRPO no thought was evicted" in text.getvalue()) == (warned is not None)


def test_rolling_positions_need_a_window() -> None:
    with pytest.raises(ValueError, match=r"positions='rolling'.*window=None.*set a window, or positions='absolute'"):
        tc.ThoughtConfig(window=None, positions="rolling")
