"""How eviction policies are dealt to what they are tested with, so that a suite over the whole table stays small.

A policy that is listed in `EVICTION_POLICIES` is in all of these. `tests/parity/test_policies_and_rules.py` has every
policy with every rule. Elsewhere the whole product is not run, because a learner repeats recorded slots whoever chose
them: the two kinds of records (`KINDS`: none, and slots that differ by layer and head) meet everything, and each of the
other policies one of the others in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from thoughtcache.cache.eviction import EVICTION_POLICIES, ScoredEviction

KINDS = ("sliding", "random")
SCORED = sorted(name for name, policy in EVICTION_POLICIES.items() if issubclass(policy, ScoredEviction))


def dealt(names: Sequence[str], every: Sequence[str], *turns: Sequence[str]) -> list[tuple[str, ...]]:
    """(name, value, turn, ...): each name with each value of `every`; the values of each of `turns` take turns."""
    return [
        (name, value, *(options[(number + step) % len(options)] for options in turns))
        for number, name in enumerate(names)
        for step, value in enumerate(every)
    ]


def in_turn(names: Sequence[str], *turns: Sequence[str]) -> list[tuple[str, ...]]:
    """(name, turn, ...): each name once; the first of `turns` changes with every name, the next after a whole round."""
    rows = []
    for number, name in enumerate(names):
        step, row = number, [name]
        for options in turns:
            row.append(options[step % len(options)])
            step //= len(options)
        rows.append(tuple(row))
    return rows


def crossed(others: Sequence[str]) -> list[tuple[str, str]]:
    """(policy, other): all pairs for the kinds of records, one other in turn for every other policy."""
    rest = [name for name in sorted(EVICTION_POLICIES) if name not in KINDS]
    return [*product(KINDS, others), *((name, others[number % len(others)]) for number, name in enumerate(rest))]
