"""Rewards as TRL calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from thoughtcache.recipes.embedded import job as embedded
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.tasks import example
from thoughtcache.tasks.embedded.problem import Problem
from thoughtcache.tasks.example import check
from thoughtcache.tasks.verdict import REASONS, Verdict
from thoughtcache.train.rewards import exact_match, math_correctness, recited_answer


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
        "right": Verdict.of("exact", "1"),
        "wrong": Verdict.of("different", "2"),
        "broken": Verdict.of("no_answer", None),
        "slow": Verdict.of("timed_out", "9^9"),
    }
    monkeypatch.setitem(example.CHECKS, "maths", lambda completion, reference: verdicts[completion])
    metrics: dict[str, float] = {}
    completions = ["right", "wrong", "broken", "broken", "slow", "right", "right", "right"]
    given = math_correctness(completions, answer=["1"] * 8, log_metric=metrics.__setitem__)
    assert given == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    counts = {"answers/exact": 4.0, "answers/different": 1.0, "answers/no_answer": 2.0, "answers/timed_out": 1.0}
    # Every reason is logged every time: processes that gather a metric must all have it.
    others = {f"answers/{reason}": 0.0 for reason in REASONS if f"answers/{reason}" not in counts}
    assert metrics == {"malformed_answers": 0.25, "answer_timeouts": 0.125, **counts, **others}


def test_the_type_of_an_answer_may_be_declared_in_a_column() -> None:
    completions = [r"\boxed{\frac{50}{2}}"] * 3
    assert math_correctness(completions, answer=["25"] * 3, answer_type=["auto", "aime", "integer"]) == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="answer_type='aimee' is not known; choose one of"):
        math_correctness(completions, answer=["25"] * 3, answer_type=["aimee"] * 3)


def test_an_error_in_the_checker_is_not_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(completion: str, reference: str) -> Verdict:
        raise RuntimeError("worker broken")

    monkeypatch.setitem(example.CHECKS, "maths", broken)
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


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        (72, "72", "73"),
        (72.0, "72", "720"),
        (-0.5, "-0.5", "0.5"),
        (True, "True", "False"),
        (["3", 4], "3, 4", "3"),
        ([[1, 2], [3, 4]], "(1, 2), (3, 4)", "1, 2, 3, 4"),
        (" 72 ", "72", "73"),
    ],
)
@pytest.mark.parametrize("reward", [math_correctness, exact_match, recited_answer])
def test_references_may_be_numbers_and_lists(
    reward: Callable[..., list[float]], reference: object, right: str, wrong: str
) -> None:
    form = "\\boxed{%s}" if reward is math_correctness else "so #%s"
    completions = [form % right, form % wrong]
    assert reward(completions, answer=[reference] * 2) == [1.0, 0.0]


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="80#;=-,. 54", max_size=8), end=st.sampled_from(["", "8054", "#8054", "#8054;", ";8054"]))
def test_the_embedded_reward_is_the_embedded_metric(text: str, end: str) -> None:
    problem = Problem(prompt="1+1=", trace="#8054", answer="8054")
    assert recited_answer([text + end], answer=["8054"]) == [float(check(problem.example, text + end).correct)]


@pytest.mark.parametrize(("completion", "expected"), [("9;#8054", 1.0), ("8054", 0.0), ("=8054", 0.0), ("#;8054", 0.0)])
def test_recited_answer(completion: str, expected: float) -> None:
    assert recited_answer([completion], answer=["8054"]) == [expected]


def test_the_embedded_job_rewards_what_its_metric_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rewards_given: list[Any] = []

    def train(model: Any, tokenizer: Any, rows: Any, reward: Any, *arguments: Any, **settings: Any) -> list[Any]:
        rewards_given.append(reward)
        return []

    monkeypatch.setattr(embedded, "train_grpo", train)
    for name in ("load_model", "test"):
        monkeypatch.setattr(embedded._Job, name, lambda *_: {"accuracy": 0.0})
    run = RunConfig(output_dir=str(tmp_path))
    job = embedded._Job(
        run=run, task=embedded.EMBEDDED_TASKS["chains"], samples_file=tmp_path / "samples", console=Console(quiet=True)
    )
    job.tokenizer = None  # type: ignore[assignment]
    embedded._grpo_arm(job, "thought_best", tmp_path / "grpo", False)
    problem = Problem(prompt="1+1=", trace="#8054", answer="8054")
    (reward,) = rewards_given
    for text in ("#8054", "8054", "#;8054", "#8054<eos>#1", "#8054 "):
        assert reward([text], answer=["8054"]) == [float(check(problem.example, text).correct)], text


@pytest.mark.parametrize("reward", [math_correctness, exact_match, recited_answer])
def test_missing_answers_are_refused(reward: Callable[..., list[float]]) -> None:
    with pytest.raises(ValueError, match="answer 1 is None"):
        reward(["1", "2"], answer=["1", None])
    with pytest.raises(ValueError, match="answer 0 is ' '"):
        reward(["1"], answer=[" "])
    for nothing in (float("nan"), [], ["1", None], {"value": 1}):
        with pytest.raises(ValueError, match=r"answer 0 is .*a number, or a list"):
            reward(["1"], answer=[nothing])
    with pytest.raises(ValueError, match="2 completions and 1 answers"):
        reward(["1", "2"], answer=["1"])
