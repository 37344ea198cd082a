"""Figures of an evaluation: by hand, against enumeration, and intervals against a simulation."""

from __future__ import annotations

import math
import random
from itertools import combinations

import numpy as np
import pytest

from thoughtcache.evaluation import bootstrap
from thoughtcache.evaluation.bootstrap import question_interval, resampled_means, widened_tail
from thoughtcache.evaluation.generations import Generation
from thoughtcache.evaluation.intervals import wilson_interval
from thoughtcache.evaluation.paired import compare
from thoughtcache.evaluation.scores import all_at_k, score, sizes
from thoughtcache.evaluation.votes import majority_at_k, vote_groups


def generation(question: str, sample: int, answer: str | None, reference: str, **changes: object) -> Generation:
    values = {
        "suite": "s", "question": question, "sample": sample, "seed": 0, "text": str(answer), "num_tokens": 10,
        "finish_reason": "stop", "evictions": [], "correct": answer == reference, "reason": "literal",
        "extracted": answer, "reference": reference, "kind": "maths",
    }  # fmt: skip
    return Generation(**{**values, **changes})  # type: ignore[arg-type]


def table(rights: list[list[bool]]) -> list[Generation]:
    return [
        generation(f"q{number}", sample, "1" if right else f"{sample + 2}", "1")
        for number, row in enumerate(rights)
        for sample, right in enumerate(row)
    ]


def test_figures_by_hand():
    # Three questions of four samples: 4, 1 and 0 right. avg@4 = 5 / 12; pass@2 = (1 + (1 - 3/6) + 0) / 3 = 1 / 2;
    # pass^2 = (1 + 0 + 0) / 3. Votes of four: q0 all right; q1 and q2 have four different answers, so chance decides:
    # 1 / 4 and 0, together 5 / 12.
    scores = score(table([[True] * 4, [False, True, False, False], [False] * 4]))
    assert (scores.num_questions, scores.num_samples) == (3, 4)
    assert scores.accuracy.value == pytest.approx(5 / 12)
    assert {k: share.value for k, share in scores.pass_at.items()} == pytest.approx({1: 5 / 12, 2: 1 / 2, 4: 2 / 3})
    assert scores.all_at[2].value == pytest.approx(1 / 3)
    assert scores.majority_at[4].value == pytest.approx(5 / 12)
    assert scores.accuracy.low <= 5 / 12 <= scores.accuracy.high


def test_lengths_cuts_and_evictions_by_hand():
    rows = [
        generation(
            f"q{i}", 0, "1", "1", num_tokens=i + 1, correct=i < 2, finish_reason="length" if i == 7 else "stop",
            evictions=[[4, 2]] * (i % 2), reason="exact" if i < 2 else "different",
        )
        for i in range(8)
    ]  # fmt: skip
    scores = score(rows[::-1])
    assert scores.truncated == 1 / 8
    assert scores.evictions_mean == 1 / 2
    assert scores.tokens == {"mean": 4.5, "median": 4.5, "p90": 8.0, "max": 8.0}
    assert [(g.shortest, g.longest, g.mean, g.num_answers, g.correct) for g in scores.by_length] == [
        (1, 2, 1.5, 2, 2), (3, 4, 3.5, 2, 0), (5, 6, 5.5, 2, 0), (7, 8, 7.5, 2, 0),
    ]  # fmt: skip
    assert scores.reasons == {"different": 6, "exact": 2}
    # One sample per question: Wilson's interval, and nothing that needs several samples.
    assert (scores.accuracy.low, scores.accuracy.high) == wilson_interval(2, 8)
    assert scores.pass_at == scores.majority_at == scores.all_at == {}


def test_random_tables_agree_with_enumeration():
    rng = random.Random(3)
    for _ in range(10):
        n = rng.randint(2, 6)
        rights = [[rng.random() < 0.4 for _ in range(n)] for _ in range(rng.randint(1, 5))]
        scores = score(table(rights))
        for k in sizes(n):
            one = [[any(row[i] for i in subset) for subset in combinations(range(n), k)] for row in rights]
            every = [[all(row[i] for i in subset) for subset in combinations(range(n), k)] for row in rights]
            assert scores.pass_at[k].value == pytest.approx(np.mean([np.mean(row) for row in one]))
            assert scores.all_at[k].value == pytest.approx(np.mean([np.mean(row) for row in every]))


def test_sizes_of_k():
    assert sizes(1) == []
    assert sizes(2) == [1, 2]
    assert sizes(16) == [1, 2, 4, 8, 16]
    assert sizes(24) == [1, 2, 4, 8, 16, 24]
    assert all_at_k(4, 3, 2) == pytest.approx(3 / 6)


def test_majority_by_hand():
    # Votes 0, 0, 1, none; group 0 is right. All four: group 0 wins. Three: {0, 0, x} wins; {0, 1, none} twice is a tie.
    votes, right = [0, 0, 1, None], [True, True, False, False]
    assert majority_at_k(votes, right, 4) == 1.0
    assert majority_at_k(votes, right, 3) == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert majority_at_k(votes, right, 1) == pytest.approx(2 / 4)
    assert majority_at_k([None, None], [False, False], 2) == 0.0
    with pytest.raises(ValueError, match="k must be between"):
        majority_at_k(votes, right, 5)


def test_many_subsets_are_sampled_near_their_mean():
    votes = [index % 3 for index in range(16)]
    right = [vote == 0 for vote in votes]
    exact = np.mean([
        _winner(votes, right, subset) for subset in combinations(range(16), 3)
    ])  # fmt: skip
    assert majority_at_k(votes, right, 3) == pytest.approx(exact, abs=0.1)


def _winner(votes: list[int], right: list[bool], subset: tuple[int, ...]) -> float:
    chosen = [votes[index] for index in subset]
    best = [vote for vote in set(chosen) if chosen.count(vote) == max(map(chosen.count, chosen))]
    return float(np.mean([vote == 0 for vote in best]))


def test_equal_answers_vote_together_right_or_wrong():
    answers = ["1/2", "0.5", r"\frac{1}{2}", "3", "3.0", None, "apple", "(((("]
    rows = [generation("q", sample, answer, "7") for sample, answer in enumerate(answers)]
    assert vote_groups(rows) == [0, 0, 0, 1, 1, None, 2, 3]
    recited = [generation("q", i, a, "7", kind="recitation") for i, a in enumerate(["05", "5", "05"])]
    assert vote_groups(recited) == [0, 1, 0]


def test_unequal_numbers_of_answers_are_refused():
    with pytest.raises(ValueError, match="finish the run first"):
        score([generation("a", 0, "1", "1"), generation("b", 0, "1", "1"), generation("b", 1, "1", "1")])
    with pytest.raises(ValueError, match="have no answers"):
        score([])


def test_resampled_means_are_those_of_a_loop():
    values = [0.0, 0.25, 1.0, 0.5, 0.75]
    rng = np.random.default_rng(4)
    looped = [np.mean([values[i] for i in row]) for row in rng.integers(5, size=(10_000, 5))]
    assert resampled_means(values, 4) == pytest.approx(looped)


def test_the_tails_are_widened_by_hand():
    # Two questions: t(0.975, 1) = 12.7062, times sqrt(2): the normal tail of 17.97 is 0; many: 0.025.
    assert widened_tail(2, 0.95) == pytest.approx(0.0, abs=1e-12)
    assert widened_tail(100_000, 0.95) == pytest.approx(0.025, abs=1e-4)
    # 30: t(0.975, 29) = 2.045230, x sqrt(30/29) = 2.080193; P(Z < -2.080193) = 0.018754.
    assert widened_tail(30, 0.95) == pytest.approx(0.018754, abs=1e-5)


def test_questions_that_are_all_the_same_have_wilsons_interval():
    assert question_interval([0.0] * 10) == wilson_interval(0, 10)
    assert question_interval([1.0] * 10) == wilson_interval(10, 10)
    low, high = question_interval([0.5])
    assert low <= 0.5 <= high
    with pytest.raises(ValueError, match="at least one question"):
        question_interval([])
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        question_interval([0.5, 1.5])


@pytest.mark.parametrize("num_questions", [30, 60])
def test_intervals_cover_what_they_say(num_questions, monkeypatch):
    """Questions of unequal difficulty, four samples each: 95 % intervals hold the true mean 93 to 97 times in 100."""
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 1000)  # for time
    rng, held, repeats = np.random.default_rng(5), 0, 1000
    for _ in range(repeats):
        chances = rng.beta(1.0, 1.5, size=num_questions)  # mean 0.4
        shares = rng.binomial(4, chances) / 4
        low, high = question_interval(shares.tolist())
        held += low <= 0.4 <= high
    assert 0.93 <= held / repeats <= 0.97


def test_a_paired_difference_by_hand():
    # Differences 1, 0, 0, -0.5 on four questions: mean 0.125,
    # variance (0.875^2 + 2 x 0.125^2 + 0.625^2) / 3 = 0.395833.
    first = {"a": 0.0, "b": 1.0, "c": 0.5, "d": 1.0, "only here": 1.0}
    second = {"d": 0.5, "c": 0.5, "b": 1.0, "a": 1.0, "only there": 0.0}
    found = compare(first, second)
    assert (found.num_questions, found.better, found.worse) == (4, 1, 1)
    assert (found.first, found.second, found.difference) == (0.625, 0.75, 0.125)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * math.sqrt(0.395833 / 4), abs=1e-5)
    assert found.low < 0.125 < found.high


def test_no_difference_at_all_and_no_common_question():
    shares = {str(number): 0.5 for number in range(20)}
    same = compare(shares, shares)
    assert same.detectable is None
    assert (same.low, same.high) == (-wilson_interval(0, 20)[1], wilson_interval(0, 20)[1])
    with pytest.raises(ValueError, match="no question in common"):
        compare({"a": 1.0}, {"b": 1.0})


def test_pairing_sees_what_two_intervals_do_not():
    """B is right wherever A is, and on six questions more: the paired interval excludes zero."""
    first = {str(number): float(number % 2) for number in range(60)}
    second = {name: 1.0 if int(name) % 10 == 0 else share for name, share in first.items()}
    found = compare(first, second)
    assert found.difference == pytest.approx(0.1)
    assert found.low > 0
    assert found.detectable is not None
    assert found.detectable < 0.15
