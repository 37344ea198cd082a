"""Links that go on from the cache of the link before: what they keep of it, with integers and tokens only.

A link stays where its chain was: its record names the first thought of the link before that it keeps, and everything
else follows from lengths. Thoughts of an open summary leave last (`begins_last`), so that what is left of them is the
same in every layer and head, whatever the eviction policy is.
"""

from __future__ import annotations

from collections.abc import Sequence

from thoughtcache.cache.schedule import resident_thoughts
from thoughtcache.policy.modes import GradientMode
from thoughtcache.records import Rollout


def begins_last(tokens: Sequence[int], sequence: Sequence[int]) -> int:
    """Number of the first thought that leaves last: where the sequence first stands, or may just be beginning.

    Args:
        tokens: the thoughts so far.
        sequence: the token sequence of `SamplingSettings.leaves_last`, which may be empty.

    Returns:
        As many as there are tokens where the sequence neither stands nor may be beginning at their end.
    """
    for start in range(len(tokens) if sequence else 0):
        found = list(tokens[start : start + len(sequence)])
        if found == list(sequence[: len(found)]):
            return start
    return len(tokens)


def num_resident(rollout: Rollout) -> int:
    """Thoughts that every layer holds when all but the last one were processed; budgets that differ are not covered."""
    processed = len(rollout.token_ids) - 1
    settings = rollout.settings
    return resident_thoughts(processed - 1, settings.window, settings.num_evicted) if processed else 0


def num_kept(before: Rollout, first_kept: int) -> int:
    """Processed thoughts of a link that the next one keeps: those from number `first_kept` on that are resident."""
    return min(len(before.token_ids) - 1 - first_kept, num_resident(before))


def kept_prompt(before: Rollout, first_kept: int) -> list[int]:
    """Tokens that stay resident, and the last one, which is processed behind them: the prompt of the next link."""
    return [*before.prompt_ids, *before.token_ids[len(before.token_ids) - 1 - num_kept(before, first_kept) :]]


def rows_of_chains(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Numbers of the rollouts that belong to one cache: a link that continues stands behind the one that it continues.

    Raises:
        ValueError: if a link does not.
    """
    chains: list[list[int]] = []
    for row, rollout in enumerate(rollouts):
        if rollout.continues is None:
            chains.append([row])
            continue
        before = rollouts[row - 1] if row else None
        if before is None or kept_prompt(before, rollout.continues.first_kept) != rollout.prompt_ids:
            raise ValueError(
                f"rollout {row} goes on from the cache of another link, which does not stand in front of it; pass all "
                "links of a chain in their order, or the chain to replay_chains"
            )
        chains[-1].append(row)
    return chains


def check_exact(gradient: GradientMode) -> None:
    """Refuse gradients that are cut somewhere: nothing says what they are between links.

    Raises:
        ValueError: if the mode is not "exact".
    """
    if gradient != "exact":
        raise ValueError(
            f'gradient={gradient!r} is not defined for links that go on from the cache of the one before; use "exact"'
        )
