"""The figures of one suite from its answers: a pure function, so that a table can be made again from the file."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from thoughtcache.evaluation.bootstrap import question_interval
from thoughtcache.evaluation.generations import Generation, by_question
from thoughtcache.evaluation.intervals import pass_at_k, wilson_interval
from thoughtcache.evaluation.votes import majority_at_k, vote_groups

NUM_LENGTH_GROUPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthGroup:
    """Answers of about the same length.

    Attributes:
        shortest: tokens of the shortest one.
        longest: tokens of the longest one.
        mean: mean tokens.
        num_answers: how many they are.
        correct: how many of them are right.
    """

    shortest: int
    longest: int
    mean: float
    num_answers: int
    correct: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteScores:
    """What one suite has come to.

    Attributes:
        num_questions: questions.
        num_samples: n, answers per question.
        accuracy: share of right answers, which is avg@n and pass@1.
        pass_at: k -> chance that one of k samples is right.
        majority_at: k -> chance that the majority of k samples is right.
        all_at: k -> chance that all of k samples are right.
        truncated: share of answers that were cut at the bound on their tokens.
        tokens: "mean", "median", "p90" and "max" of the tokens of an answer.
        evictions_mean: evictions per answer.
        by_length: the answers in four groups of about the same number, from short to long.
        reasons: how many answers had each reason of a verdict.
    """

    num_questions: int
    num_samples: int
    accuracy: Share
    pass_at: dict[int, Share]
    majority_at: dict[int, Share]
    all_at: dict[int, Share]
    truncated: float
    tokens: dict[str, float]
    evictions_mean: float
    by_length: list[LengthGroup]
    reasons: dict[str, int]


def score(generations: Sequence[Generation]) -> SuiteScores:
    """Score the answers of a suite.

    Args:
        generations: the same number of answers to each question, in any order.

    Raises:
        ValueError: if there are none, or questions have different numbers of answers.
    """
    questions = by_question(sorted(generations, key=lambda one: (one.question, one.sample)))
    counts = {len(own) for own in questions.values()}
    if len(counts) != 1:
        raise ValueError(
            f"the questions have {sorted(counts) or 'no'} answers each, allowed: the same number; finish the run first"
        )
    (num_samples,) = counts
    rights = [[one.correct for one in own] for own in questions.values()]
    votes = [vote_groups(own) for own in questions.values()] if num_samples > 1 else []
    ks = sizes(num_samples)

    def estimate(per_question: Callable[[int, int], float]) -> dict[int, Share]:
        return {k: share_of([per_question(index, k) for index in range(len(rights))]) for k in ks}

    lengths = [one.num_tokens for one in generations]
    return SuiteScores(
        num_questions=len(questions),
        num_samples=num_samples,
        accuracy=_accuracy(rights),
        pass_at=estimate(lambda index, k: pass_at_k(num_samples, sum(rights[index]), k)),
        majority_at=estimate(lambda index, k: majority_at_k(votes[index], rights[index], k)),
        all_at=estimate(lambda index, k: all_at_k(num_samples, sum(rights[index]), k)),
        truncated=sum(one.finish_reason == "length" for one in generations) / len(generations),
        tokens={
            "mean": statistics.fmean(lengths),
            "median": float(statistics.median(lengths)),
            "p90": float(sorted(lengths)[math.ceil(0.9 * len(lengths)) - 1]),
            "max": float(max(lengths)),
        },
        evictions_mean=statistics.fmean(len(one.evictions) for one in generations),
        by_length=length_groups(generations),
        reasons=dict(sorted(Counter(one.reason for one in generations).items())),
    )


def sizes(num_samples: int) -> list[int]:
    """The k of pass@k: powers of two up to n, and n; none for a single sample."""
    powers = [2**power for power in range(num_samples.bit_length()) if 2**power <= num_samples]
    return sorted({*powers, num_samples}) if num_samples > 1 else []


def share_of(values: Sequence[float]) -> Share:
    """The mean of one share per question, with its interval over questions."""
    low, high = question_interval(values)
    return Share(value=math.fsum(values) / len(values), low=low, high=high)


def all_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that k samples are all right: `C(c, k) / C(n, k)` (pass^k)."""
    return math.comb(num_correct, k) / math.comb(num_samples, k)


def length_groups(generations: Sequence[Generation]) -> list[LengthGroup]:
    """The answers in groups by length; fewer groups than four if there are fewer answers."""
    ordered = sorted(generations, key=lambda one: one.num_tokens)
    bounds = [len(ordered) * part // NUM_LENGTH_GROUPS for part in range(NUM_LENGTH_GROUPS + 1)]
    groups = [ordered[start:end] for start, end in pairwise(bounds) if end > start]
    return [
        LengthGroup(
            shortest=group[0].num_tokens,
            longest=group[-1].num_tokens,
            mean=statistics.fmean(one.num_tokens for one in group),
            num_answers=len(group),
            correct=sum(one.correct for one in group),
        )
        for group in groups
    ]


def _accuracy(rights: Sequence[Sequence[bool]]) -> Share:
    """Wilson's interval for one sample per question, a bootstrap over questions otherwise."""
    if len(rights[0]) > 1:
        return share_of([sum(own) / len(own) for own in rights])
    correct = sum(own[0] for own in rights)
    low, high = wilson_interval(correct, len(rights))
    return Share(value=correct / len(rights), low=low, high=high)
