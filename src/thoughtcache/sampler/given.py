"""Texts that are given instead of drawn: what the policy would have evicted of them, and how likely it finds them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from thoughtcache.cache.eviction import EVICTION_POLICIES
from thoughtcache.records import Rollout
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.request import Request


def rollouts_of_given(model: nn.Module, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The same tokens under the model's own policy: with its evictions, states and log-probabilities.

    Args:
        model: the adapted model, not wrapped; it must not be sampling.
        rollouts: tokens under one window, seeds for eviction policies that draw, and temperatures. What else they
            recorded is not read.
    """
    engine = Engine(
        model,
        num_slots=len(rollouts),
        window=rollouts[0].settings.window,
        max_prompt_tokens=max(len(rollout.prompt_ids) for rollout in rollouts),
        max_new_tokens=max(len(rollout.token_ids) for rollout in rollouts),
    )
    return engine.run(
        Request(
            prompt_ids=rollout.prompt_ids,
            max_new_tokens=len(rollout.token_ids),
            temperature=rollout.settings.temperature,
            seed=rollout.settings.seed,
            given_tokens=rollout.token_ids,
        )
        for rollout in rollouts
    )


def with_own_evictions(model: nn.Module, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
    """Texts with what the model's own policy evicts of them.

    Where the oldest leave, lengths say what leaves, and the records stay; any other eviction policy chooses first.

    Args:
        model: see `rollouts_of_given`.
        rollouts: texts under one window, with the evictions of `sliding_evictions`.
    """
    settings = rollouts[0].settings
    chooses = settings.window is not None and EVICTION_POLICIES[settings.eviction].chooses
    return rollouts_of_given(model, rollouts) if chooses else rollouts
