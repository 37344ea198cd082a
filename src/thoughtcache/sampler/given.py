"""Texts that are given instead of drawn: what the policy would have evicted of them, and how likely it finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from thoughtcache.cache.eviction import find_eviction_policy
from thoughtcache.cache.eviction.policies.sliding import sliding_evictions
from thoughtcache.records import CacheSettings, Rollout, SamplingSettings
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.events import Event
from thoughtcache.sampler.request import Request


def given_text(prompt_ids: Sequence[int], token_ids: Sequence[int], cache: CacheSettings, *, seed: int) -> Rollout:
    """Tokens as if they had been sampled at temperature 1 under a cache that lets the oldest leave first.

    Args:
        prompt_ids: tokens that stay in the cache.
        token_ids: the thoughts.
        cache: the cache, resolved.
        seed: seed of eviction policies that draw.
    """
    settings = SamplingSettings(
        temperature=1.0,
        max_new_tokens=len(token_ids),
        window=cache.window,
        num_evicted=cache.num_evicted,
        eviction=cache.eviction,
        positions=cache.positions,
        eviction_options=cache.eviction_options,
        budgets=cache.budgets,
        head_budgets=cache.head_budgets,
        seed=seed,
        ignore_eos=True,
    )
    return Rollout(
        prompt_ids=list(prompt_ids),
        token_ids=list(token_ids),
        logprobs=torch.zeros(len(token_ids)),
        evictions=sliding_evictions(len(token_ids) - 1, cache.smallest_budget, cache.num_evicted),
        finish_reason="length",
        settings=settings,
    )


BATCH_SIZE = 32
"""Texts that go through the model at once."""


def rollouts_of_given(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    on_event: Callable[[Event], None] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> list[Rollout]:
    """The same tokens under the model's own policy: with its evictions, states and log-probabilities.

    Args:
        model: the adapted model, not wrapped; it must not be sampling.
        rollouts: tokens under one window, seeds for eviction policies that draw, and temperatures. What else they
            recorded is not read.
        on_event: called with every event of the engine when it happens.
        batch_size: slots; the longest texts go first, and a slot whose text ends takes the next one.

    Returns:
        One rollout per text, in order.
    """
    order = sorted(range(len(rollouts)), key=lambda row: -len(rollouts[row].token_ids))
    engine = Engine(
        model,
        num_slots=min(batch_size, len(rollouts)),
        window=rollouts[0].settings.window,
        max_prompt_tokens=max(len(rollout.prompt_ids) for rollout in rollouts),
        max_new_tokens=max(len(rollout.token_ids) for rollout in rollouts),
        on_event=on_event,
    )
    found = engine.run(
        Request(
            prompt_ids=rollout.prompt_ids,
            max_new_tokens=len(rollout.token_ids),
            temperature=rollout.settings.temperature,
            seed=rollout.settings.seed,
            given_tokens=rollout.token_ids,
        )
        for rollout in (rollouts[row] for row in order)
    )
    in_order = dict(zip(order, found, strict=True))
    return [in_order[row] for row in range(len(rollouts))]


def with_own_evictions(model: nn.Module, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
    """Texts with what the model's own policy evicts of them.

    Where the oldest leave, lengths say what leaves, and the records stay; any other eviction policy chooses first.

    Args:
        model: see `rollouts_of_given`.
        rollouts: texts under one window, with the evictions of `sliding_evictions`.
    """
    settings = rollouts[0].settings
    chooses = settings.window is not None and find_eviction_policy(settings.eviction).chooses
    return rollouts_of_given(model, rollouts) if chooses else rollouts


CHOSEN_AT_ONCE = 8
"""Texts that are decoded at once where nobody says otherwise; their replay, one by one, takes more memory."""


def each_with_own_evictions(
    model: nn.Module, rollouts: Sequence[Rollout], *, batch_size: int = CHOSEN_AT_ONCE
) -> Iterator[Rollout]:
    """`with_own_evictions` for texts that are taken one by one: a few at a time are decoded, when the first is taken.

    Args:
        model: see `rollouts_of_given`.
        rollouts: see `with_own_evictions`.
        batch_size: texts that are decoded at once.
    """
    for start in range(0, len(rollouts), batch_size):
        yield from with_own_evictions(model, rollouts[start : start + batch_size])
