"""Sequences that go on in the slot of the one before, from its cache: what an engine does at such a boundary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from thoughtcache.cache.host_integers import Integers
from thoughtcache.policy.continuations import begins_last, kept_prompt, num_kept
from thoughtcache.policy.limits import num_before
from thoughtcache.policy.modes import Place
from thoughtcache.records import CacheSettings, Continuation, Rollout
from thoughtcache.sampler.events import Started
from thoughtcache.sampler.request import Request
from thoughtcache.sampler.sequence import RunningSequence, new_sequence
from thoughtcache.sampler.slots.fold import begin_link, fold_slot

if TYPE_CHECKING:
    from thoughtcache.sampler.engine import Engine


def check_goes_on(cache: CacheSettings, record_kv: Place | None = None) -> None:
    """Refuse caches under which nothing can go on.

    Raises:
        ValueError: for rolling positions, budgets by layer, and records of keys and values.
    """
    if cache.positions == "rolling":
        raise ValueError(
            'positions="rolling" moves keys, and keeping them as they were written leaves them where they are; use '
            'positions="absolute", or links that are encoded again'
        )
    if cache.budgets is not None:
        own = [list(heads) for heads in cache.head_budgets] if cache.head_budgets else list(cache.budgets)
        raise ValueError(
            f"layers or heads with budgets of their own ({own}) would keep different thoughts of a link; use an even "
            "window, or links that are encoded again"
        )
    if record_kv is not None:
        raise ValueError(
            f"record_kv={record_kv!r} records one prompt and its thoughts, and a link that goes on from the cache of "
            "the one before has no such prompt; leave it out"
        )


def allow_going_on(engine: Engine, request: Request) -> None:
    """Let an engine look at the device in every round: what goes on begins in the round in which the one before ends.

    A request after which nothing goes on leaves the engine as it is.

    Raises:
        ValueError: see `check_goes_on`.
    """
    if request.go_on is not None:
        check_goes_on(engine.settings, engine.record_kv)
        rules = engine.cache.rules
        if rules.num_evicted and rules.eviction.chooses and not request.leaves_last:
            raise ValueError(
                f"under the policy {rules.eviction.name} every head would keep other thoughts of what goes on; say "
                "with leaves_last where those begin that stay"
            )
        engine.looks_every = 1


def goes_on(engine: Engine, slot: int, sequence: RunningSequence, rollout: Rollout) -> bool:
    """Begin the sequence that goes on from one that is over, and say whether there is one.

    The last token of the one before was drawn and not processed. The coming forward pass processes it as it does every
    token, behind what stays.

    Args:
        engine: the engine.
        slot: slot of both.
        sequence: the one that is over.
        rollout: its record.

    Raises:
        ValueError: if the model cannot sample what follows.
    """
    following = None if sequence.go_on is None else sequence.go_on(rollout)
    if following is None:
        return False
    cache, first_kept, request = engine.cache, following.first_kept, following.request
    if list(request.prompt_ids) != kept_prompt(rollout, first_kept):
        raise ValueError(
            f"the prompt of what goes on from request {sequence.request} is not what stays of it; pass "
            "kept_prompt(rollout, first_kept)"
        )
    position = num_before(rollout) + len(rollout.token_ids)
    states = fold_slot(cache, slot, num_kept(rollout, first_kept))
    recorded = None
    if engine.anchors and states is not None and cache.rules.absorb is not None:
        recorded = torch.cat(states).cpu()
    continues = Continuation(first_kept=first_kept, position=position, state=recorded)
    begun = new_sequence(
        engine.num_requests, request, engine.policy, engine.settings, engine.tokenizer, continues=continues
    )
    engine.num_requests += 1
    engine.table.reset([slot])
    cache.reserve([(len(begun.prompt), begun.rules.max_new_tokens)])
    begin_link(cache, slot, len(begun.prompt) - 1, position - 1, states, begun.settings.seed)
    engine.slots[slot], engine.limits[slot] = begun, begun.rules.max_new_tokens
    engine.drawing.admit([slot], [begun.rules], [begun.prompt])
    engine.tell(Started(request=begun.request))
    return True


def note_last(engine: Engine, due: Integers) -> None:
    """Tell the cache how many thoughts of these slots leave last, where their eviction policy chooses."""
    if not engine.cache.rules.eviction.chooses:
        return
    for slot in due.tolist():
        sequence = engine.slots[slot]
        if sequence is not None and sequence.settings.leaves_last:
            count = int(engine.counts[slot])
            begin = begins_last(engine.drawing.tokens[slot, :count].tolist(), sequence.settings.leaves_last)
            engine.cache.columns.last[slot] = max(0, count - 1 - begin)
