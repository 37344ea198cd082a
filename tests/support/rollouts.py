"""Prompts of unequal lengths and rollouts of which some rows end early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft

import thoughtcache as tc

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9, 7], [9]]
"""Unequal lengths, one of a single token."""


def stop_token(rollouts: Sequence[tc.Rollout], not_before: int) -> int:
    """A token that ends some of these rows early, but none before thought `not_before`, and not all of them."""
    for token in sorted({token for rollout in rollouts for token in rollout.token_ids}):
        ends = [r.token_ids.index(token) for r in rollouts if token in r.token_ids[:-1]]
        never = [r for r in rollouts if token not in r.token_ids]
        if ends and never and min(ends) >= not_before:
            return token
    raise AssertionError("no token ends only some of the rows; use another seed")


def ragged_rollouts(
    model: peft.PeftModel, *, max_new_tokens: int, prompts: Sequence[Sequence[int]] = PROMPTS, **arguments: Any
) -> list[tc.Rollout]:
    """Rollouts of which at least one row ends early and at least one does not."""
    free = tc.rollout(model, prompts, max_new_tokens=max_new_tokens, ignore_eos=True, **arguments)
    stop = stop_token(free, not_before=max_new_tokens // 3)
    rollouts = tc.rollout(model, prompts, max_new_tokens=max_new_tokens, stop_ids=[stop], **arguments)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    return rollouts
