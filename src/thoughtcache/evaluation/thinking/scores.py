"""What Think@n has come to, and what it cost beside the majority of all samples."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from thoughtcache.evaluation.generations import Generation, by_question
from thoughtcache.evaluation.paired import PairedDifference, compare
from thoughtcache.evaluation.scores import Share, share_of
from thoughtcache.evaluation.thinking.selection import Prefix
from thoughtcache.evaluation.votes import majority_at_k, vote_groups

Key = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkScores:
    """Think@n of one suite. Tokens are means per question.

    Attributes:
        num_samples: n, answers that were begun.
        num_kept: answers that were finished for it.
        accuracy: share of the questions whose majority of the kept answers is right.
        majority: the same of all n answers; None where the others were not finished.
        minus_majority: think@n less maj@n, question by question; None likewise.
        kept_right: share of the kept answers that are right.
        rest_right: share of the others that are right; None where they were not finished.
        ratio: mean deep-thinking ratio of the beginnings.
        tokens: tokens sampled for think@n: the kept answers, and the beginnings of the others.
        majority_tokens: tokens of all n answers; where the others were not finished, an estimate: n times the mean of
            the kept ones.
        is_estimate: whether it is one.
        tokens_again: beginnings of kept answers, which passed through the model once more to go on.
        tokens_looked_at: tokens of prompts and beginnings in the pass that looks at the layers.
    """

    num_samples: int
    num_kept: int
    accuracy: Share
    majority: Share | None
    minus_majority: PairedDifference | None
    kept_right: Share
    rest_right: Share | None
    ratio: float
    tokens: float
    majority_tokens: float
    is_estimate: bool
    tokens_again: float
    tokens_looked_at: float


def think_scores(
    prefixes: Sequence[Prefix],
    generations: Sequence[Generation],
    kept: Collection[Key],
    prompt_tokens: Mapping[str, int],
) -> ThinkScores:
    """Score a suite.

    Args:
        prefixes: all beginnings of its questions, equally many each.
        generations: the finished answers: the kept ones, or all.
        kept: question and sample of the kept ones.
        prompt_tokens: tokens of the prompt of each question.
    """
    # In the order of `score`, so that the same figure has the same resampled interval.
    questions = by_question(sorted(generations, key=lambda one: one.key))
    voters = {question: [one for one in own if one.key in kept] for question, own in questions.items()}
    count, is_whole = len(questions), len(generations) == len(prefixes)
    num_samples = len(prefixes) // count
    unfinished = sum(len(prefix.token_ids) for prefix in prefixes if prefix.key not in kept)
    kept_tokens = sum(one.num_tokens for own in voters.values() for one in own)
    thought = {question: _majority(own) for question, own in voters.items()}
    voted = {question: _majority(own) for question, own in questions.items()}
    return ThinkScores(
        num_samples=num_samples,
        num_kept=len(kept) // count,
        accuracy=share_of(list(thought.values())),
        majority=share_of(list(voted.values())) if is_whole else None,
        minus_majority=compare(voted, thought) if is_whole else None,
        kept_right=share_of([_right(own) for own in voters.values()]),
        rest_right=(
            share_of([_right([one for one in own if one.key not in kept]) for own in questions.values()])
            if is_whole
            else None
        ),
        ratio=statistics.fmean(prefix.ratio for prefix in prefixes),
        tokens=(kept_tokens + unfinished) / count,
        majority_tokens=(
            sum(one.num_tokens for one in generations) / count if is_whole else num_samples * kept_tokens / len(kept)
        ),
        is_estimate=not is_whole,
        tokens_again=sum(
            len(prefix.token_ids) for prefix in prefixes if prefix.key in kept and prefix.finish_reason != "stop"
        )
        / count,
        tokens_looked_at=sum(prompt_tokens[prefix.question] + len(prefix.token_ids) - 1 for prefix in prefixes) / count,
    )


def _majority(own: Sequence[Generation]) -> float:
    return majority_at_k(vote_groups(own), [one.correct for one in own], len(own))


def _right(own: Sequence[Generation]) -> float:
    return sum(one.correct for one in own) / len(own)
