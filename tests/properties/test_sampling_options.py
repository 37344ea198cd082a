"""Filters, seeds and ends: a sequence is the one that it would be alone; both log-probabilities are what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close, padded
from support.filters import processors
from support.grpo import word_tokenizer
from support.models import VOCABULARY, tiny_model
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.replay import run_replay
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import open_policy
from thoughtcache.records import TokenFilters
from thoughtcache.sampler import engine

PROMPTS = [[3, 1, 4, 1, 5], [6, 5], [3, 1, 4, 1, 5], [9], [2, 7, 1, 8]]
LENGTH = 15
STOPS = [2, 7]
TOKENIZER = word_tokenizer()
MODELS = {
    eviction: tiny_model(window=4, evict_fraction=0.5, state_rule="gated", eviction=eviction)
    for eviction in ("sliding", "random")
}
ALL = {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.4, "min_new_tokens": 3}

prompt_lists = st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=5), min_size=1, max_size=5)
filter_options = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.integers(1, VOCABULARY),
        "top_p": st.floats(0.05, 0.99),
        "min_p": st.floats(0.001, 0.5),
        "repetition_penalty": st.sampled_from([0.7, 1.3, 2.0]),
        "min_new_tokens": st.integers(1, LENGTH),
        "temperature": st.sampled_from([0.5, 1.7]),
    },
)
stop_texts = st.lists(st.sampled_from(["w5", "3 w", "w1", "<eos>", "8 w2"]), max_size=2)


def sample(model, prompts, **options) -> list[tc.Rollout]:
    arguments = {"max_new_tokens": LENGTH, "stop_ids": STOPS, "tokenizer": TOKENIZER, **options}
    return tc.rollout(model, prompts, **arguments)


def assert_same(one: list[tc.Rollout], other: list[tc.Rollout]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.token_ids == right.token_ids
        assert left.finish_reason == right.finish_reason
        assert left.settings == right.settings
        assert len(left.evictions) == len(right.evictions)
        for mine, theirs in zip(left.evictions, right.evictions, strict=True):
            assert mine.slots is None or torch.equal(mine.slots, theirs.slots)
        assert_close(left.logprobs, right.logprobs)
        assert (left.sampled_logprobs is None) == (right.sampled_logprobs is None)
        if left.sampled_logprobs is not None:
            assert_close(left.sampled_logprobs, right.sampled_logprobs)


def naive_sampled_logprobs(model, rollout: tc.Rollout) -> torch.Tensor:
    """[T] by transformers' processors over the logits of a replay, one step at a time."""
    policy = open_policy(model)
    batch = batch_rollouts([rollout], policy.device)
    (hidden,) = run_replay(model, batch, lambda h, start, stop, known: (h,), ReplayOptions())
    temperature = rollout.settings.scoring_temperature
    found = []
    for step, token in enumerate(rollout.token_ids):
        known = torch.tensor([rollout.prompt_ids + rollout.token_ids[:step]])
        applied = processors(rollout.settings.filters, temperature, len(rollout.prompt_ids), STOPS)
        found.append(applied(known, policy.head(hidden[:, step])).log_softmax(dim=-1)[0, token])
    return torch.stack(found)


@settings(max_examples=20, deadline=None)
@given(
    prompts=prompt_lists,
    options=filter_options,
    stop_strings=stop_texts,
    num_slots=st.integers(1, 4),
    looks_every=st.sampled_from([1, 4]),
    seeds=st.lists(st.integers(-3, 1000), min_size=5, max_size=5),
    eviction=st.sampled_from(sorted(MODELS)),
)
def test_a_sequence_is_the_one_that_it_would_be_alone(
    prompts, options, stop_strings, num_slots, looks_every, seeds, eviction
):
    model, original = MODELS[eviction], engine.Engine.__enter__

    def rarely(self: engine.Engine) -> engine.Engine:
        self.looks_every = looks_every
        return original(self)

    options = {**options, "stop_strings": stop_strings}
    seeds = seeds[: len(prompts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Engine, "__enter__", rarely)
        together = sample(model, prompts, seed=seeds, batch_size=num_slots, **options)
        shared = sample(model, prompts, seed=seeds[0], batch_size=num_slots, **options)
    alone = [sample(model, [ids], seed=seed, **options)[0] for ids, seed in zip(prompts, seeds, strict=True)]
    assert_same(together, alone)
    assert_same(shared, sample(model, prompts, seed=seeds[0], **options))
    with torch.no_grad():
        assert_close(tc.replay(model, together).logprobs, padded(together))
    for rollout in together:
        tokens, minimum = rollout.token_ids, options.get("min_new_tokens", 0)
        assert not set(tokens[:minimum]) & set(STOPS)
        assert len(tokens) > minimum or rollout.finish_reason == "length"
        text, before = TOKENIZER.decode(tokens), TOKENIZER.decode(tokens[:-1])
        completed = any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in stop_strings)
        ended = len(tokens) > minimum and (tokens[-1] in STOPS or completed)
        assert (rollout.finish_reason == "stop") == ended
        assert minimum > 0 or not any(string in before for string in stop_strings)


@pytest.mark.parametrize(
    ("temperature", "options"),
    [(t, {name: value}) for t in (1.0, 0.6) for name, value in ALL.items()]
    + [(1.0, ALL), (0.6, ALL), (0.0, {"repetition_penalty": 1.4, "min_new_tokens": 3})],
    ids=str,
)
def test_both_log_probabilities(temperature, options):
    model = MODELS["random"]
    rollouts = sample(model, PROMPTS, temperature=temperature, batch_size=2, seed=11, **options)
    with torch.no_grad():
        assert_close(tc.naive_logprobs(model, rollouts).logprobs, padded(rollouts))
        for rollout in rollouts:
            assert rollout.settings.filters == TokenFilters(**options)
            assert_close(rollout.sampled_logprobs, naive_sampled_logprobs(model, rollout))
    differences = [(r.sampled_logprobs - r.logprobs).abs().max() for r in rollouts]
    assert max(differences) > 1e-2, "the filter changed nothing: nothing was compared"


def test_without_filters_there_is_one_log_probability():
    assert all(r.sampled_logprobs is None for r in sample(MODELS["sliding"], PROMPTS, stop_strings=["w5"]))


def test_ends_of_all_kinds():
    model = MODELS["sliding"]
    free = sample(model, PROMPTS, ignore_eos=True)
    rollouts = sample(model, PROMPTS, stop_strings=["w5", "1 w2"])
    for short, long in zip(rollouts, free, strict=True):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
    ends = [r.token_ids[-1] in STOPS for r in rollouts if r.finish_reason == "stop"]
    assert set(ends) == {True, False}, "both a stop token and a stop string have to end something"
    # A stop string holds where stop tokens are ignored.
    again = sample(model, PROMPTS, stop_strings=["w5", "1 w2"], ignore_eos=True)
    assert any(r.finish_reason == "stop" for r in again)
    assert not any(r.finish_reason == "stop" and r.token_ids[-1] in STOPS for r in again)


def test_records_end_with_the_text():
    """Keys, values, states and entropies of a sequence that went on after its end while nobody looked."""
    model = MODELS["random"]
    rollouts = sample(model, PROMPTS, stop_strings=["w5", "1 w2"], record_kv="device", repetition_penalty=1.2)
    assert any(r.finish_reason == "stop" for r in rollouts)
    for rollout in rollouts:
        count = len(rollout.token_ids)
        assert rollout.keys_values.shape[3] == len(rollout.prompt_ids) + count - 1
        assert len(rollout.entropies) == len(rollout.logprobs) == len(rollout.sampled_logprobs) == count
    with torch.no_grad():
        assert_close(
            tc.replay(model, rollouts).entropies,
            torch.nn.utils.rnn.pad_sequence([r.entropies for r in rollouts], batch_first=True),
        )


def test_one_seed_per_prompt():
    model = MODELS["random"]
    first, second, third, fourth = sample(model, [[9]] * 4, seed=[5, 5, 6, 5], ignore_eos=True)
    assert first.token_ids == second.token_ids == fourth.token_ids != third.token_ids
    assert [r.settings.seed for r in (first, second, third)] == [5, 5, 6]
    assert torch.equal(first.evictions[0].slots, second.evictions[0].slots)
    assert not torch.equal(first.evictions[0].slots, third.evictions[0].slots)
    (alone,) = sample(model, [[9]], seed=6, ignore_eos=True)
    assert alone.token_ids == third.token_ids
    # With one seed for all, rows differ in what they draw and share what random eviction draws.
    left, right = sample(model, [[9]] * 2, seed=5, ignore_eos=True)
    assert left.token_ids == first.token_ids != right.token_ids
    assert torch.equal(left.evictions[0].slots, right.evictions[0].slots)


def test_the_most_likely_token_survives_every_filter():
    """As greedy as it gets: with `top_k=1` seeds play no part."""
    model = MODELS["sliding"]
    greedy = sample(model, PROMPTS, temperature=0.0)
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        found = sample(model, PROMPTS, seed=3, **options)
        assert [r.token_ids for r in found] == [r.token_ids for r in greedy]
        assert all(torch.equal(r.sampled_logprobs, torch.zeros_like(r.logprobs)) for r in found)


def test_filters_do_not_change_what_is_replayed():
    """The scored distribution knows nothing of filters: replay reads only temperature and cache."""
    model = MODELS["sliding"]
    rollouts = sample(model, PROMPTS, **ALL)
    plain = [replace(r, settings=replace(r.settings, filters=TokenFilters())) for r in rollouts]
    with torch.no_grad():
        assert torch.equal(tc.replay(model, rollouts).logprobs, tc.replay(model, plain).logprobs)


def test_dropped_slots_leave_the_others_their_seeds():
    """Most sequences end at once; what random eviction draws for the rest is still theirs."""
    model, prompts, seeds = MODELS["random"], PROMPTS * 2, range(10)
    options = {"stop_ids": [*STOPS, 3, 8, 11, 14]}
    together = sample(model, prompts, seed=seeds, **options)
    counts = sorted(len(r.evictions) for r in together)
    assert counts[5] == 0 < counts[-1] - 2, "half of the slots have to be dropped before another one evicts"
    assert_same(together, [sample(model, [p], seed=s, **options)[0] for p, s in zip(prompts, seeds, strict=True)])


@pytest.mark.parametrize("looks_every", [1, 4])
def test_dropped_slots_leave_the_others_all_that_is_theirs(looks_every, monkeypatch):
    """Text, tokens seen, uniform numbers, both log-probabilities, entropies, keys and values: as if it were alone."""
    model, prompts, original = MODELS["random"], PROMPTS * 2, engine.Engine.__enter__

    def rarely(self: engine.Engine) -> engine.Engine:
        self.looks_every = looks_every
        return original(self)

    monkeypatch.setattr(engine.Engine, "__enter__", rarely)
    options = {
        "stop_ids": [*STOPS, 3, 8, 11], "stop_strings": ["w5", "w9 w4", "1 w2"], "repetition_penalty": 1.4,
        "min_new_tokens": 2, "record_kv": "device",
    }  # fmt: skip
    together = sample(model, prompts, seed=range(10), **options)
    lengths = sorted(len(r.token_ids) for r in together)
    assert lengths[5] + 3 < lengths[-1], "half of the slots have to be dropped long before the last one ends"
    alone = [sample(model, [p], seed=s, **options)[0] for s, p in enumerate(prompts)]
    assert_same(together, alone)
    for one, other in zip(together, alone, strict=True):
        assert_close(one.entropies, other.entropies)
        assert_close(one.keys_values, other.keys_values)
