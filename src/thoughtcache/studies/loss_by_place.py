"""Losses of texts in groups: by how many thoughts were read, and by the age of what would help.

What would help to predict a token is where the same pair, the token before it and itself, was read last: a model with a
full cache copies from there. Its age is the number of tokens since. The prompt never leaves, so that pairs in it are a
group of their own.

Axes: T thoughts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thoughtcache.evaluation.intervals import ratio_interval
from thoughtcache.records import CacheSettings
from thoughtcache.studies.held_out import TextLosses

NEVER, IN_PROMPT = 0, -1
"""Stand for an age where the pair was not read before, and where it was read in the prompt."""
FIRST_GROUP = 64
"""Thoughts of the first group under the full cache."""
NEVER_NAME, PROMPT_NAME = "never before", "in the prompt"


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLoss:
    """Tokens of one group over all texts. Means are in nats per token, each with its 95 % interval over texts.

    Attributes:
        name: what the group is called.
        first: smallest place or age; `NEVER` or `IN_PROMPT` for these.
        last: largest place or age that a text has.
        num_tokens: tokens in it.
        num_texts: texts that have some.
        own: loss of the policy.
        full: loss of the base with its full cache.
        kl: divergence of the first from the second.
    """

    name: str
    first: int
    last: int
    num_tokens: int
    num_texts: int
    own: tuple[float, float, float]
    full: tuple[float, float, float]
    kl: tuple[float, float, float]

    @property
    def perplexity(self) -> float:
        """Perplexity of the policy."""
        return math.exp(self.own[0])

    @property
    def full_perplexity(self) -> float:
        """Perplexity of the base with its full cache."""
        return math.exp(self.full[0])


def all_tokens(losses: Sequence[TextLosses]) -> GroupLoss:
    """All thoughts."""
    (found,) = _groups(losses, lambda text, thought: 0, [("all", 0, max(len(one.kl) for one in losses) - 1)])
    return found


def by_position(losses: Sequence[TextLosses], cache: CacheSettings) -> list[GroupLoss]:
    """Groups by the number of the thought that is predicted: before the first eviction, then doubling.

    Args:
        losses: what was found, one per text.
        cache: the cache, resolved.
    """
    longest = max(len(one.kl) for one in losses)
    # The thought of the number of the first eviction is predicted with all thoughts before it still there.
    first = cache.smallest_budget
    ends = _doubling(FIRST_GROUP - 1 if first is None else first, longest - 1)
    return _groups(losses, lambda text, thought: _place(ends, thought), _ranges(0, ends, longest - 1))


def by_age(losses: Sequence[TextLosses], ages: Sequence[Sequence[int]], cache: CacheSettings) -> list[GroupLoss]:
    """Groups by the age of the pair that would help, of thoughts that are predicted after the first eviction.

    The first group is surely in the cache where the oldest leave, the second one partly, and the others have left. A
    policy that chooses keeps others, in every head its own.

    Args:
        losses: what was found, one per text.
        ages: what `pair_ages` says of each text.
        cache: the cache, resolved.
    """
    longest = max(len(one.kl) for one in losses)
    after = -1 if cache.smallest_budget is None else cache.smallest_budget
    ends = _doubling(cache.smallest_budget or FIRST_GROUP, longest)
    if cache.smallest_budget is not None:
        # Right after an eviction this many thoughts are there at least when the next one is predicted.
        ends = sorted({cache.smallest_budget - (cache.num_evicted or 0) + 1, *ends})
    groups = [*_ranges(1, ends, longest), (PROMPT_NAME, IN_PROMPT, IN_PROMPT), (NEVER_NAME, NEVER, NEVER)]

    def group(text: int, thought: int) -> int | None:
        age = ages[text][thought]
        if thought <= after:
            return None
        return {IN_PROMPT: len(ends), NEVER: len(ends) + 1}[age] if age in (IN_PROMPT, NEVER) else _place(ends, age)

    return _groups(losses, group, groups)


def pair_ages(prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[int]:
    """For each thought, the tokens since the pair of the token before it and itself was read last.

    Args:
        prompt_ids: tokens of the prompt, at least one.
        token_ids: the thoughts.

    Returns:
        T ages, from 1; `NEVER`, or `IN_PROMPT` where the pair ends in the prompt.
    """
    tokens = [*prompt_ids, *token_ids]
    last: dict[tuple[int, int], int] = {}
    ages = []
    for place in range(1, len(tokens)):
        pair = tokens[place - 1], tokens[place]
        if place >= len(prompt_ids):
            before = last.get(pair)
            ages.append(NEVER if before is None else place - before if before >= len(prompt_ids) else IN_PROMPT)
        last[pair] = place
    return ages


def naive_pair_ages(prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[int]:
    """`pair_ages` by looking at every earlier place, the nearest first."""
    tokens = [*prompt_ids, *token_ids]
    ages = []
    for place in range(len(prompt_ids), len(tokens)):
        age = NEVER
        for before in range(place - 1, 0, -1):
            if tokens[before] == tokens[place] and tokens[before - 1] == tokens[place - 1]:
                age = place - before if before >= len(prompt_ids) else IN_PROMPT
                break
        ages.append(age)
    return ages


def _doubling(first: int, longest: int) -> list[int]:
    """Last places of groups: the first one, twice that, and so on until `longest` is in one."""
    ends = [first]
    while ends[-1] < longest:
        ends.append(2 * ends[-1])
    return ends


def _ranges(start: int, ends: Sequence[int], longest: int) -> list[tuple[str, int, int]]:
    """Name, first and last of each group; the last one ends where the texts do."""
    starts, stops = [start, *(end + 1 for end in ends[:-1])], [*ends[:-1], min(ends[-1], longest)]
    return [(f"{first}-{last}", first, last) for first, last in zip(starts, stops, strict=True)]


def _place(ends: Sequence[int], value: int) -> int:
    """The number of the first group that ends at a value or beyond."""
    return next(number for number, end in enumerate(ends) if value <= end)


def _groups(
    losses: Sequence[TextLosses],
    group: Callable[[int, int], int | None],
    names: Sequence[tuple[str, int, int]],
) -> list[GroupLoss]:
    """The groups that have tokens, in their order.

    Args:
        losses: what was found, one per text.
        group: (text, thought) -> number of its group, or None.
        names: name, first and last of each group.
    """
    members: list[list[list[int]]] = [[[] for _ in losses] for _ in names]
    for text, one in enumerate(losses):
        for thought in range(len(one.kl)):
            number = group(text, thought)
            if number is not None:
                members[number][text].append(thought)
    found = []
    for (name, first, last), thoughts in zip(names, members, strict=True):
        counts = [len(own) for own in thoughts]
        if not sum(counts):
            continue
        kl, own, full = (
            ratio_interval(
                [values[at].double().sum().item() for values, at in zip(column, thoughts, strict=True)], counts
            )
            for column in zip(*losses, strict=True)
        )
        found.append(
            GroupLoss(
                name=name,
                first=first,
                last=last,
                num_tokens=sum(counts),
                num_texts=sum(count > 0 for count in counts),
                own=own,
                full=full,
                kl=kl,
            )
        )
    return found
