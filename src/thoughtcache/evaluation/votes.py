"""maj@k: the answer that most of k samples give, and whether it is right.

Answers are put together by the comparison of their type (`tasks/maths/answer_types.py`), without the reference and
without computer algebra, so that wrong answers are put together as right ones are. No answer is no vote.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations

from thoughtcache.evaluation.generations import Generation
from thoughtcache.tasks.maths.answer_types import read_reference, same_answer
from thoughtcache.tasks.maths.expressions.tokens import TooLargeError, UnreadableError
from thoughtcache.tasks.maths.limits import refusal
from thoughtcache.tasks.verdict import RIGHT

MOST_SUBSETS = 200


def majority_at_k(votes: Sequence[int | None], is_right: Sequence[bool], k: int) -> float:
    """The chance that the majority of k samples of one question is right.

    Ties are broken by chance, and so is which answer of the winning group is given. All subsets of k samples are
    looked at, or 200 of them by chance if they are more.

    Args:
        votes: group of each sample's answer, as `vote_groups` gives them; None for no answer.
        is_right: whether each sample is right.
        k: samples that vote, 1 to all.

    Raises:
        ValueError: if k is out of range.
    """
    count = len(votes)
    if not 1 <= k <= count:
        raise ValueError(f"k must be between 1 and num_samples={count}, got {k}; draw more samples per question")
    if math.comb(count, k) <= MOST_SUBSETS:
        subsets: list[Sequence[int]] = list(combinations(range(count), k))
    else:
        rng = random.Random(0)
        subsets = [rng.sample(range(count), k) for _ in range(MOST_SUBSETS)]
    return math.fsum(_winner_is_right(votes, is_right, subset) for subset in subsets) / len(subsets)


def vote_groups(generations: Sequence[Generation]) -> list[int | None]:
    """The number of the group of equal answers that each sample votes for; None for no answer."""
    representatives: list[str] = []
    groups: list[int | None] = []
    known: dict[str, int] = {}
    for generation in generations:
        answer = generation.extracted
        if answer is None:
            groups.append(None)
            continue
        if answer not in known:
            same = (number for number, other in enumerate(representatives) if _equal(other, answer, generation.kind))
            known[answer] = next(same, len(representatives))
            if known[answer] == len(representatives):
                representatives.append(answer)
        groups.append(known[answer])
    return groups


def _winner_is_right(votes: Sequence[int | None], is_right: Sequence[bool], subset: Sequence[int]) -> float:
    members: dict[int, list[bool]] = {}
    for index in subset:
        vote = votes[index]
        if vote is not None:
            members.setdefault(vote, []).append(is_right[index])
    if not members:
        return 0.0
    most = max(map(len, members.values()))
    winners = [sum(own) / len(own) for own in members.values() if len(own) == most]
    return math.fsum(winners) / len(winners)


def _equal(answer: str, other: str, kind: str) -> bool:
    if kind == "recitation" or refusal(answer) or refusal(other):
        return answer == other
    answer_type = "auto" if kind == "maths" else kind
    try:
        return same_answer(read_reference(answer, answer_type), other, answer_type) in RIGHT
    except (ValueError, UnreadableError, TooLargeError):
        return False
