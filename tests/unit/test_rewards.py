"""Rewards as TRL calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from thoughtcache.tasks.answers import AnswerCheck
from thoughtcache.train import rewards
from thoughtcache.train.rewards import exact_match, math_correctness


def test_math_correctness_of_strings_and_chats() -> None:
    completions: list[Any] = [
        r"so \boxed{\frac{1}{2}}",
        [{"role": "assistant", "content": r"\boxed{0.5}"}],
        [{"role": "assistant", "content": r"\boxed{0.5}"}, {"role": "assistant", "content": r"\boxed{2}"}],
        [{"role": "assistant", "content": None}],
        [],
    ]
    # TRL passes every column and its own helpers along.
    given = math_correctness(completions, answer=["0.5"] * 5, prompts=["p"] * 5, trainer_state=None, log_extra=print)
    assert given == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_metrics_are_fractions_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = {
        "right": AnswerCheck(correct=True, parsed=True, timed_out=False, extracted="1"),
        "wrong": AnswerCheck(correct=False, parsed=True, timed_out=False, extracted="2"),
        "broken": AnswerCheck(correct=False, parsed=False, timed_out=False, extracted=None),
        "slow": AnswerCheck(correct=False, parsed=False, timed_out=True, extracted="9^9"),
    }
    monkeypatch.setattr(rewards, "check_math_answer", lambda completion, reference: verdicts[completion])
    metrics: dict[str, float] = {}
    completions = ["right", "wrong", "broken", "broken", "slow", "right", "right", "right"]
    given = math_correctness(completions, answer=["1"] * 8, log_metric=metrics.__setitem__)
    assert given == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert metrics == {"malformed_answers": 0.25, "answer_timeouts": 0.125}


def test_an_error_in_the_checker_is_not_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(completion: str, reference: str) -> AnswerCheck:
        raise RuntimeError("worker broken")

    monkeypatch.setattr(rewards, "check_math_answer", broken)
    with pytest.raises(RuntimeError, match="worker broken"):
        math_correctness(["1"], answer=["1"])


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("9*82;#8054", 1.0),
        ("#8054 \n", 1.0),
        ("8054", 1.0),
        ("= 8054", 1.0),
        ("18054", 0.0),
        ("-8054", 0.0),
        ("0.8054", 0.0),
        ("x8054", 0.0),
        ("#8054;", 0.0),
        ("#805", 0.0),
        ("", 0.0),
    ],
)
def test_exact_match(completion: str, expected: float) -> None:
    assert exact_match([completion], answer=["8054"], prompts=["p"]) == [expected]


@pytest.mark.parametrize("reward", [math_correctness, exact_match])
def test_missing_answers_are_refused(reward: Callable[..., list[float]]) -> None:
    with pytest.raises(ValueError, match="answer 1 is None"):
        reward(["1", "2"], answer=["1", None])
    with pytest.raises(ValueError, match="answer 0 is ' '"):
        reward(["1"], answer=[" "])
    with pytest.raises(ValueError, match="2 completions and 1 answers"):
        reward(["1", "2"], answer=["1"])
