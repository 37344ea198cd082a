"""Checks that a window ever evicts: where it does not, the bounded cache is the full one and teaches nothing."""

from __future__ import annotations

from collections.abc import Sequence

from thoughtcache.records import Rollout


def longest_held(window: int) -> int:
    """Tokens of the longest rollout that a window holds: the last token is sampled and never processed."""
    return window + 1


def check_evicted(samples: Sequence[Rollout]) -> None:
    """Refuse samples under a window that holds every one of them: the student then sees what the teacher sees.

    Raises:
        ValueError: if no sample is ever evicted; the message names the window, the longest sample and what to change.
    """
    if any(sample.evictions for sample in samples):
        return
    window = samples[0].settings.cache.smallest_budget
    if window is None:
        raise ValueError(
            "window=None keeps the full cache, which is the teacher's: there is nothing to distil; give a window"
        )
    longest = max(len(sample.token_ids) for sample in samples)
    raise ValueError(
        f"none of the {len(samples)} teacher samples is ever evicted: the longest has {longest} tokens, and "
        f"window={window} holds them all, so that there is nothing to distil; set window below {max(2, longest - 1)}, "
        "or allow_no_eviction=True"
    )
