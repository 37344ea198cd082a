"""Checks that rollouts lie within the positions of a model."""

from __future__ import annotations

from collections.abc import Sequence

from thoughtcache.adapter.positions import PositionReach, check_positions
from thoughtcache.records import Rollout, SamplingSettings


def check_rollout_positions(rollouts: Sequence[Rollout], settings: SamplingSettings, reach: PositionReach) -> None:
    """Refuse rollouts that would be scored beyond the positions of the model.

    With fixed frequencies every row counts by itself. Where they vary with the length of a forward pass, rows that are
    scored together count together: the longest prompt and the longest thoughts, since rows are padded to them.

    Args:
        rollouts: rollouts that are scored in one batch.
        settings: settings under which they are scored.
        reach: reach of the model's positions.

    Raises:
        ValueError: see `check_positions`.
    """
    lengths = [(num_before(rollout), len(rollout.token_ids)) for rollout in rollouts]
    if reach.varies:
        lengths = [(max(prompt for prompt, _ in lengths), max(thought for _, thought in lengths))]
    for prompt, thought in lengths:
        check_positions(prompt, thought, reach, rolling_window=settings.rolling_window)


def num_before(rollout: Rollout) -> int:
    """Tokens that were seen before the first thought, which is the position of that thought."""
    return len(rollout.prompt_ids) if rollout.continues is None else rollout.continues.position
