"""Exact-match accuracy of the packaged reasoner: full cache, no memory, and what is counted."""

from __future__ import annotations

import dataclasses

import peft
import pytest

from thoughtcache import ThoughtConfig
from thoughtcache.evaluation.accuracy import Accuracy, exact_match_accuracy
from thoughtcache.evaluation.intervals import wilson_interval
from thoughtcache.tasks.embedded.problem import sample_problems
from thoughtcache.tasks.embedded.reasoner import load_reasoner

NUM_PROBLEMS = 12
WINDOW, EVICTED = 8, 2


@pytest.fixture(scope="module")
def reasoner():
    base, tokenizer = load_reasoner()
    # A is zero: the policy is the base model, whatever the state does.
    config = ThoughtConfig(r=4, num_global_tokens=4, lora_alpha=4, window=WINDOW)
    return peft.get_peft_model(base, config), tokenizer


@pytest.fixture(scope="module")
def problems():
    return sample_problems("chains", NUM_PROBLEMS, "test", seed=0)


def test_full_cache_solves_and_counts(reasoner, problems):
    finished = []
    accuracy = exact_match_accuracy(
        *reasoner, problems, max_new_tokens=64, window=None, batch_size=5, progress=finished.append
    )
    assert accuracy.total == NUM_PROBLEMS
    # The base model solves 99.9 %: two misses in 12 would be a bug (chance below 1e-4).
    assert accuracy.correct >= NUM_PROBLEMS - 1
    assert accuracy.percent == pytest.approx(100 * accuracy.correct / NUM_PROBLEMS)
    assert (accuracy.low, accuracy.high) == wilson_interval(accuracy.correct, NUM_PROBLEMS)
    # Every trace of a chain has 50 tokens, end of sequence included.
    if accuracy.correct == NUM_PROBLEMS:
        assert accuracy.mean_tokens == 50.0
    assert accuracy.evictions_mean == 0.0
    assert accuracy.elapsed_seconds > 0
    assert sum(finished) == NUM_PROBLEMS


def test_the_adapters_own_window_forgets(reasoner, problems):
    accuracy = exact_match_accuracy(*reasoner, problems, max_new_tokens=40)
    assert accuracy.correct <= 2
    # Rows that run to the bound: 39 inputs, (39 - 8) / 2 rounded up = 16 evictions; early ends have fewer.
    assert 0 < accuracy.evictions_mean <= 16
    assert 0 < accuracy.mean_tokens <= 40


def test_a_cut_completion_is_wrong(reasoner, problems):
    accuracy = exact_match_accuracy(*reasoner, problems[:3], max_new_tokens=10, window=None)
    assert (accuracy.correct, accuracy.percent, accuracy.low, accuracy.mean_tokens) == (0, 0.0, 0.0, 10.0)


def test_answers_are_compared_with_their_own_problem(reasoner, problems):
    rotated = [
        dataclasses.replace(problem, answer=other.answer)
        for problem, other in zip(problems, problems[1:] + problems[:1], strict=True)
    ]
    assert exact_match_accuracy(*reasoner, rotated, max_new_tokens=64, window=None).correct == 0


def test_batch_size_changes_nothing_and_the_seed_does(reasoner, problems):
    def tokens(**options: int) -> float:
        return exact_match_accuracy(
            *reasoner, problems[:6], max_new_tokens=40, temperature=2.0, window=WINDOW, **options
        ).mean_tokens

    assert tokens(batch_size=6) == tokens(batch_size=4)
    assert tokens(seed=0) != tokens(seed=1)


def test_refusals(reasoner, problems):
    with pytest.raises(ValueError, match="problems is empty"):
        exact_match_accuracy(*reasoner, [], max_new_tokens=4)
    with pytest.raises(ValueError, match="batch_size must"):
        exact_match_accuracy(*reasoner, problems, max_new_tokens=4, batch_size=0)


def test_the_record_is_frozen_and_keyword_only():
    accuracy = Accuracy(correct=1, total=4, low=0.0, high=1.0, mean_tokens=1.0, evictions_mean=0.0, elapsed_seconds=0.0)
    assert accuracy.percent == 25.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        accuracy.correct = 2  # type: ignore[misc]
