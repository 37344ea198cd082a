"""An engine that outlives a call: requests come, are aborted and end in any order; each is what it would be alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close
from support.grpo import word_tokenizer
from support.models import VOCABULARY, tiny_model
from thoughtcache.sampler.events import Event, Evicted, Evicting, Finished, Started, Tokens

MODELS = {
    "sliding": tiny_model(window=4, evict_fraction=0.5, state_rule="gated"),
    "random, rolling": tiny_model(window=3, evict_fraction=0.5, eviction="random", positions="rolling"),
    "full cache": tiny_model(window=None),
}
STOPS = (3, 7, 11)
PROMPTS = ([3, 1, 4, 1, 5], [6, 5], [9], [2, 7, 1, 8, 2, 8])

filters = st.fixed_dictionaries(
    {
        "top_k": st.sampled_from([0, 3]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "min_new_tokens": st.sampled_from([0, 2]),
    }
)
drawn = st.fixed_dictionaries(
    {
        "prompt_ids": st.sampled_from(PROMPTS),
        "max_new_tokens": st.integers(2, 13),
        "temperature": st.sampled_from([0.0, 0.6, 1.0]),
        "filters": filters,
        "seed": st.integers(-3, 40),
        "row": st.integers(0, 2),
        "ignore_eos": st.booleans(),
        "stop_ids": st.sampled_from([None, STOPS, STOPS[:1]]),
    }
)
given_texts = st.fixed_dictionaries(
    {
        "prompt_ids": st.sampled_from(PROMPTS),
        "given_tokens": st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=11),
    }
)


def made(options: dict[str, Any]) -> tc.Request:
    """The request of a drawn action."""
    given = options.get("given_tokens")
    if given is not None:
        return tc.Request(max_new_tokens=len(given), **options)
    chosen = tc.TokenFilters(**options["filters"])
    temperature = options["temperature"] or (1.0 if chosen.truncates else 0.0)
    return tc.Request(**{**options, "filters": chosen, "temperature": temperature})


actions = st.one_of(drawn, drawn, given_texts, st.integers(0, 12), st.just("step"), st.just("step"), st.just("step"))
schedules = st.lists(actions, min_size=1, max_size=40)
"""A request is added, a number is aborted, and a step is made."""


def run(engine: tc.Engine, schedule: list[Any]) -> tuple[dict[int, tc.Request], set[int], list[Event]]:
    """(requests by number, those that were aborted while they were there, all events in order)."""
    added: dict[int, tc.Request] = {}
    aborted: set[int] = set()
    events: list[Event] = []
    with engine:
        for action in schedule:
            if isinstance(action, dict):
                request = made(action)
                added[engine.add(request)] = request
            elif isinstance(action, tc.Request):
                added[engine.add(action)] = action
            elif action == "step":
                events += engine.step()
            elif engine.abort(action):
                aborted.add(action)
        engine.drain()
        while not engine.is_idle:
            events += engine.step()
    return added, aborted, events


def alone(model: Any, request: tc.Request, **options: Any) -> tc.Rollout:
    """The request in an engine of its own."""
    engine = tc.Engine(model, num_slots=1, **options)
    _, _, events = run(engine, [request])
    (finished,) = (event for event in events if isinstance(event, Finished))
    return finished.rollout


def assert_same(found: tc.Rollout, expected: tc.Rollout) -> None:
    assert found.token_ids == expected.token_ids
    assert found.finish_reason == expected.finish_reason
    assert found.settings == expected.settings
    assert_close(found.logprobs, expected.logprobs)
    for name in ("sampled_logprobs", "entropies", "keys_values", "states"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert_close(one, other)
    assert len(found.evictions) == len(expected.evictions)
    for mine, theirs in zip(found.evictions, expected.evictions, strict=True):
        assert mine.before_token == theirs.before_token
        assert (mine.slots is None) == (theirs.slots is None)
        assert mine.slots is None or torch.equal(mine.slots, theirs.slots)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)), schedule=schedules, num_slots=st.integers(1, 4), looks_every=st.integers(1, 3)
)
def test_a_request_gets_what_it_would_get_alone(name, schedule, num_slots, looks_every):
    model = MODELS[name]
    engine = tc.Engine(model, num_slots=num_slots, record_kv="device", stream=True)
    engine.looks_every = looks_every
    added, aborted, events = run(engine, schedule)
    finished = {event.request: event.rollout for event in events if isinstance(event, Finished)}
    assert set(finished) == set(added) - aborted, "each request finishes once, or was aborted"
    for number, rollout in finished.items():
        assert_same(rollout, alone(model, added[number], record_kv="device"))
        told = [token for e in events if isinstance(e, Tokens) and e.request == number for token in e.token_ids]
        assert told == rollout.token_ids
    assert engine.prompts.prefilled == {}
    assert not engine.cache.taken.any()


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), schedule=schedules)
def test_events_come_in_their_order(name, schedule):
    heard: list[Event] = []
    engine = tc.Engine(MODELS[name], num_slots=2, on_event=heard.append)
    added, aborted, events = run(engine, schedule)
    assert heard == events
    for number in set(added) - aborted:
        kinds = [type(event) for event in events if number in (getattr(event, "request", None), *of(event))]
        assert kinds[0] is Started
        assert kinds[-1] is Finished
        between = kinds[1:-1]
        assert between == [Evicting, Evicted] * (len(between) // 2)
        rollout = next(e.rollout for e in events if isinstance(e, Finished) and e.request == number)
        assert len(between) // 2 == len(rollout.evictions)


def of(event: Event) -> tuple[int, ...]:
    return event.requests if isinstance(event, Evicting | Evicted) else ()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_given_tokens_have_the_scores_that_the_sampler_gave_them(name):
    """A text that was sampled, given back: same evictions, states, keys, values and log-probabilities."""
    model = MODELS[name]
    sampled = alone(
        model, tc.Request(prompt_ids=[6, 5], max_new_tokens=15, seed=4, ignore_eos=True), record_kv="device"
    )
    again = tc.Request(prompt_ids=[6, 5], max_new_tokens=15, seed=4, given_tokens=sampled.token_ids)
    scored = alone(model, again, record_kv="device")
    assert_same(replace(scored, settings=sampled.settings), sampled)
    assert_close(tc.replay(model, [scored]).logprobs[0], scored.logprobs)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("num_given", [1, 4, 7])
def test_a_beginning_that_is_given_goes_on_as_if_it_had_been_drawn(name, num_given):
    """The same random numbers, filters, stop rules and evictions as without it, beside a neighbour that has none."""
    model, tokenizer = MODELS[name], word_tokenizer()
    chosen = tc.TokenFilters(top_k=9, repetition_penalty=1.2, min_new_tokens=5)
    free = tc.Request(prompt_ids=[6, 5], max_new_tokens=15, seed=4, row=2, filters=chosen, stop_ids=[])
    whole = alone(model, free, tokenizer=tokenizer)
    stop, text = whole.token_ids[9], tokenizer.decode(whole.token_ids[11:13])
    for rules in ({}, {"stop_ids": [stop]}, {"stop_strings": [text]}, {"stop_sequences": [whole.token_ids[8:10]]}):
        wanted = replace(free, **rules)
        expected = alone(model, wanted, tokenizer=tokenizer)
        begun = replace(wanted, given_tokens=expected.token_ids[:num_given])
        engine = tc.Engine(model, num_slots=2, tokenizer=tokenizer)
        _, _, events = run(engine, [begun, replace(wanted, prompt_ids=[9], seed=5)])
        found = {event.request: event.rollout for event in events if isinstance(event, Finished)}
        assert len(expected.token_ids) > num_given
        assert_same(found[0], expected)
        assert_same(found[1], alone(model, replace(wanted, prompt_ids=[9], seed=5), tokenizer=tokenizer))


def test_nothing_ends_a_sequence_inside_its_beginning():
    """Stop tokens, strings and sequences count from the first token on that is drawn, a neighbour's from its own."""
    model, tokenizer = MODELS["sliding"], word_tokenizer()
    free = alone(model, tc.Request(prompt_ids=[6, 5], max_new_tokens=12, seed=4, ignore_eos=True))
    begun, stop = free.token_ids[:6], free.token_ids[7]
    assert stop != free.token_ids[6]
    text = tokenizer.decode(begun[2:4])
    for rules in (
        {"stop_ids": [begun[0], begun[3], stop]},
        {"stop_ids": [stop], "stop_strings": [text]},
        {"stop_ids": [stop], "stop_sequences": [begun[2:4]]},
        {"stop_sequences": [begun[2:4], free.token_ids[5:8]]},
    ):
        wanted = tc.Request(prompt_ids=[6, 5], max_new_tokens=12, seed=4, given_tokens=begun, **rules)
        engine = tc.Engine(model, num_slots=2, tokenizer=tokenizer)
        _, _, events = run(engine, [wanted, replace(wanted, given_tokens=None)])
        found = {event.request: event.rollout for event in events if isinstance(event, Finished)}
        assert (found[0].token_ids, found[0].finish_reason) == (free.token_ids[:8], "stop")
        assert len(found[1].token_ids) < 6, "the neighbour draws the same tokens, and they end it"


def test_a_rollout_is_all_requests_until_idle():
    model = MODELS["sliding"]
    expected = tc.rollout(model, PROMPTS, max_new_tokens=9, seed=3, stop_ids=STOPS)
    wanted = [
        tc.Request(prompt_ids=ids, max_new_tokens=9, seed=3, row=row, stop_ids=STOPS) for row, ids in enumerate(PROMPTS)
    ]
    _, _, events = run(tc.Engine(model, num_slots=2), wanted)
    found = {event.request: event.rollout for event in events if isinstance(event, Finished)}
    for number, rollout in enumerate(expected):
        assert_same(found[number], rollout)


def test_stop_strings_of_one_request_end_no_other():
    model, tokenizer = MODELS["sliding"], word_tokenizer()
    engine = tc.Engine(model, num_slots=3, tokenizer=tokenizer)
    base = {"prompt_ids": [9], "max_new_tokens": 12, "ignore_eos": True}
    free = alone(model, tc.Request(seed=1, **base), tokenizer=tokenizer)
    text = tokenizer.decode(free.token_ids[2:4])
    wanted = [tc.Request(seed=1, **base), tc.Request(seed=1, stop_strings=[text], **base), tc.Request(seed=2, **base)]
    _, _, events = run(engine, wanted)
    found = {event.request: event.rollout for event in events if isinstance(event, Finished)}
    assert found[0].token_ids == free.token_ids
    assert len(found[1].token_ids) < 12
    assert found[1].finish_reason == "stop"
    assert len(found[2].token_ids) == 12


def test_what_an_engine_refuses():
    model = MODELS["sliding"]
    engine = tc.Engine(model, num_slots=1)
    request = tc.Request(prompt_ids=[9], max_new_tokens=2)
    with pytest.raises(RuntimeError, match="with Engine"):
        engine.step()
    with pytest.raises(ValueError, match="num_slots must be at least 1 sequence, got 0"):
        tc.Engine(model, num_slots=0)
    with pytest.raises(ValueError, match=r"window='prompt' is not known.*has no meaning before the prompts are known"):
        tc.Engine(model, num_slots=1, window="prompt")
    with pytest.raises(ValueError, match="given_tokens must be 1 to max_new_tokens=1 tokens, got 2"):
        tc.Request(prompt_ids=[9], max_new_tokens=1, given_tokens=[1, 2])
    with pytest.raises(ValueError, match="leave out filters and stop rules"):
        tc.Request(prompt_ids=[9], max_new_tokens=2, given_tokens=[1, 2], filters=tc.TokenFilters(top_k=2))
    with pytest.raises(ValueError, match=f"the model has tokens 0 to {VOCABULARY - 1}"):
        engine.add(replace(request, prompt_ids=[VOCABULARY]))
    with pytest.raises(ValueError, match="pass tokenizer="):
        engine.add(replace(request, stop_strings="a"))
    assert engine.is_idle
    engine.drain()
    with pytest.raises(RuntimeError, match="no more requests"):
        engine.add(request)


def test_an_engine_has_the_model_for_itself_until_its_block_ends():
    model = MODELS["sliding"]
    with tc.Engine(model, num_slots=1) as engine:
        engine.add(tc.Request(prompt_ids=[9], max_new_tokens=2))
        with pytest.raises(RuntimeError, match="this model is sampling already"):
            tc.rollout(model, [[9]], max_new_tokens=2)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert len(tc.rollout(model, [[9]], max_new_tokens=2)) == 1


def test_aborting_frees_the_slot_at_once():
    with tc.Engine(MODELS["sliding"], num_slots=1) as engine:
        first = engine.add(tc.Request(prompt_ids=[9], max_new_tokens=30, ignore_eos=True))
        second = engine.add(tc.Request(prompt_ids=[6, 5], max_new_tokens=3, ignore_eos=True))
        waiting = engine.add(tc.Request(prompt_ids=[6, 5], max_new_tokens=3, ignore_eos=True))
        engine.step()
        assert engine.abort(first)
        assert engine.abort(waiting)
        assert not engine.abort(first)
        events: list[Event] = []
        while not engine.is_idle:
            events += engine.step()
    assert [event.request for event in events if isinstance(event, Finished)] == [second]


def test_slots_beyond_what_is_expected_are_dropped_and_the_others_wait_for_requests():
    model, lengths = MODELS["sliding"], (3, 4, 6, 12)
    requests = [
        tc.Request(prompt_ids=ids, max_new_tokens=length, ignore_eos=True)
        for ids, length in zip(PROMPTS, lengths, strict=True)
    ]
    found: dict[int, tc.Rollout] = {}
    with tc.Engine(model, num_slots=4) as engine:
        for request in requests:
            engine.add(request)
        while len(found) < 2:
            found.update((event.request, event.rollout) for event in engine.step() if isinstance(event, Finished))
        engine.expect(2)
        while len(found) < 3:
            found.update((event.request, event.rollout) for event in engine.step() if isinstance(event, Finished))
        assert len(engine.slots) == 2, "one is free, for the request that follows"
        requests.append(tc.Request(prompt_ids=[8, 2], max_new_tokens=2, ignore_eos=True))
        assert Started(request=engine.add(requests[-1])) in engine.step(), "it waits for nobody"
        while not engine.is_idle:
            found.update((event.request, event.rollout) for event in engine.step() if isinstance(event, Finished))
    for number, request in enumerate(requests):
        assert_same(found[number], alone(model, request))
