"""Budgets by layer: the grid of events, allocations, what is refused, and a worked example by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from peft import PeftModel

import thoughtcache as tc
from support.grpo import word_tokenizer
from support.models import tiny_base, tiny_model
from support.rollouts import PROMPTS
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.cache.budgets import ALLOCATIONS, LayerBudgets, resolve_budgets
from thoughtcache.cache.budgets.base import on_grid
from thoughtcache.cache.budgets.pyramid import PyramidBudgets
from thoughtcache.cache.schedule import evict_count, num_evictions
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.chunk import batch_chunks
from thoughtcache.learner.chunk_plan import plan_chunks
from thoughtcache.learner.kv_log import KVLog
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.records import CacheSettings
from thoughtcache.tasks.recall.passcode import PasscodeTask

# Layers of budgets 4 and 8, of which 2 leave: events before thoughts 4, 6, 8, 10, ...; the second layer joins at 8.
BY_HAND = LayerBudgets(window=6, num_evicted=2, sizes=(4, 8))


def test_events_by_hand():
    assert (BY_HAND.smallest, BY_HAND.largest, BY_HAND.num_opening) == (4, 8, 2)
    assert BY_HAND.distinct == (4, 8)
    assert [BY_HAND.num_late(layer) for layer in range(2)] == [0, 2]
    assert [[BY_HAND.is_due(layer, event) for layer in range(2)] for event in range(4)] == [
        [True, False], [True, False], [True, True], [True, True],
    ]  # fmt: skip
    assert [BY_HAND.due(event, 2) for event in (0, 2)] == [{4: [0]}, {4: [0], 8: [1]}]
    assert [[BY_HAND.num_evictions(layer, events) for events in range(5)] for layer in range(2)] == [
        [0, 1, 2, 3, 4], [0, 0, 0, 1, 2],
    ]  # fmt: skip
    # The next token falls by 2 at events 2, 3, ...: before them a larger layer still fills up.
    assert [BY_HAND.roll(event) for event in range(4)] == [0, 0, 2, 2]
    assert [BY_HAND.rolled(events) for events in range(5)] == [0, 0, 0, 2, 4]
    assert LayerBudgets(window=9, num_evicted=3, sizes=(12, 6, 9)).place(2, 1) == 1


@pytest.mark.parametrize("positions", ["absolute", "rolling"])
def test_residents_and_positions_by_hand(positions):
    """Keys that are there after every token, and the positions at which they stand, in both layers."""
    model = tiny_model(window=6, evict_fraction=1 / 3, eviction_budgets=[4, 8], positions=positions)
    tuner = model.base_model
    cache = tuner.new_cache(tuner.thought_config.resolve_window(None), max_new_tokens=12)
    thoughts = torch.tensor([[7, 3, 5, 9, 2, 8, 4, 1, 6, 3, 2, 5]])
    held, placed = [], []
    seen: list[int] = []
    note = cache.note_positions
    cache.note_positions = lambda ids: (seen.append(int(ids[0, -1])), note(ids))[1]  # type: ignore[method-assign]
    with torch.no_grad():
        argument = cache_keyword(model.base_model.model, cache)
        model(input_ids=torch.tensor([[9, 1]]), **argument)
        for step in range(12):
            model(input_ids=thoughts[:, step : step + 1], **argument)
            held.append([layer.length - 2 for layer in cache.layers])
            placed.append(seen[-1])
    # A layer holds budget - 2 after it has evicted, and the new thought.
    assert [row[0] for row in held] == [1, 2, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4]
    assert [row[1] for row in held] == [1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 7, 8]
    rolling = [2, 3, 4, 5, 6, 7, 8, 9, 8, 9, 8, 9]
    assert placed == (rolling if positions == "rolling" else list(range(2, 14)))


def test_resident_sets_by_hand():
    """Thoughts that leave and stay, counted from 0, in one head of both layers; slots count residents."""
    slots = [[[1, 2]], [[0, 3]], [[0, 1], [0, 5]], [[2, 3], [1, 7]]]
    evictions = tuple(
        tc.records.Eviction(before_token=4 + 2 * event, num_tokens=2, slots=torch.tensor(chosen).unsqueeze(1).short())
        for event, chosen in enumerate(slots)
    )
    settings = tc.records.SamplingSettings(
        temperature=1.0, max_new_tokens=12, window=6, num_evicted=2, eviction="random", seed=0, ignore_eos=True,
        budgets=(4, 8),
    )  # fmt: skip
    rollout = tc.Rollout(
        prompt_ids=[5, 5], token_ids=list(range(12)), logprobs=torch.zeros(12), evictions=evictions,
        finish_reason="length", settings=settings,
    )  # fmt: skip
    batch = batch_rollouts([rollout], torch.device("cpu"))
    assert [event[0, :, 0].tolist() for event in batch.leaving_thoughts] == [
        [[1, 2]], [[0, 5]], [[3, 4], [0, 5]], [[8, 9], [2, 9]],
    ]  # fmt: skip
    found = [
        [one.of_layer(layer, 1)[0, 0].tolist() for layer in range(2)]
        for one in KVLog(batch, batch_chunks(batch), "device").resident
        if one is not None
    ]
    assert found == [
        [[0, 1, 2, 3], [0, 1, 2, 3]],
        [[0, 3, 4, 5], [0, 1, 2, 3, 4, 5]],
        [[3, 4, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]],
        [[6, 7, 8, 9], [1, 2, 3, 4, 6, 7, 8, 9]],
    ]
    chunks = plan_chunks([12], 2, 4, 2, budget=8)
    assert [(chunk.entry, chunk.evicted, chunk.leaving) for chunk in chunks] == [
        (0, 0, 6), (6, 0, 8), (8, 0, 10), (10, 2, 10), (10, 2, 9),
    ]  # fmt: skip


@given(
    num_inputs=st.integers(0, 90),
    smallest=st.integers(1, 9),
    steps=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    num_evicted=st.integers(1, 9),
)
def test_a_layer_evicts_as_if_its_budget_were_the_window(num_inputs, smallest, steps, num_evicted):
    assume(smallest >= num_evicted)
    sizes = tuple(smallest + num_evicted * step for step in steps)
    budgets = LayerBudgets(window=max(1, sum(sizes) // len(sizes)), num_evicted=num_evicted, sizes=sizes)
    events = num_evictions(num_inputs, budgets.smallest, num_evicted)
    for layer, size in enumerate(sizes):
        assert budgets.num_evictions(layer, events) == num_evictions(num_inputs, size, num_evicted)


@given(
    smallest=st.integers(1, 9), steps=st.lists(st.integers(0, 4), min_size=1, max_size=5), num_evicted=st.integers(1, 9)
)
def test_what_is_kept_about_layers_is_its_definition(smallest, steps, num_evicted):
    sizes = tuple(smallest + num_evicted * step for step in steps)
    budgets = LayerBudgets(window=max(1, sum(sizes) // len(sizes)), num_evicted=num_evicted, sizes=sizes)
    for event in range(max(steps) + 2):
        due = [event >= (size - min(sizes)) / num_evicted for size in sizes]
        assert [budgets.is_due(layer, event) for layer in range(len(sizes))] == due
        assert [budgets.place(layer, event) for layer in range(len(sizes))] == [
            sum(due[:layer]) for layer in range(len(sizes))
        ]


def test_budgets_are_looked_through_once_and_not_at_every_event():
    walks = 0

    class Counted(tuple[int, ...]):
        __slots__ = ()

        def __iter__(self):
            nonlocal walks
            walks += 1
            return super().__iter__()

    budgets = LayerBudgets(window=6, num_evicted=2, sizes=Counted((4, 8) * 20))
    for event in range(30):
        for layer in range(40):
            budgets.is_due(layer, event)
            budgets.place(layer, event)
            budgets.rolled(event)
    assert walks <= 3  # smallest, largest, late
    rollout = tc.Rollout(
        prompt_ids=[5], token_ids=[1], logprobs=torch.zeros(1), evictions=(), finish_reason="length",
        settings=tc.records.SamplingSettings(
            temperature=1.0, max_new_tokens=1, window=6, num_evicted=2, eviction="sliding", seed=0, ignore_eos=True,
            budgets=(4, 8),
        ),
    )  # fmt: skip
    batch = batch_rollouts([rollout], torch.device("cpu"))
    assert batch.budgets is batch.budgets


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@given(num_layers=st.integers(2, 80), window=st.integers(2, 2048), evict_fraction=st.floats(0.01, 0.9))
def test_allocations_keep_the_total_and_the_grid(name, num_layers, window, evict_fraction):
    num_evicted = evict_count(window, evict_fraction)
    assume(window - num_evicted >= 2 * num_evicted)  # else they may come to even budgets, which is refused
    budgets, _ = resolve_budgets(name, window, num_evicted, num_layers)
    assert budgets is not None
    assert len(budgets) == num_layers
    assert sum(budgets) == num_layers * window
    assert min(budgets) > num_evicted  # somebody stays
    assert not any((size - min(budgets)) % num_evicted for size in budgets)
    # What a list must be is what an allocation gives.
    assert resolve_budgets(budgets, window, num_evicted, num_layers) == (budgets, None)


def test_the_pyramid_by_hand():
    """5 layers, W = 16, E = 4: 12 are kept on average, at least 1, at most 23, in steps of 5.5: 23, 17.5, 12, 6.5, 1.

    The total leaves a smallest kept part of 12, 8 or 4 (E / gcd(4, 5) = 4), so 4. Then m = (4.75, 3.375, 2, 0.625,
    -0.75) sums to 10 after rounding: 4, 3, 2, 0, 0 are one short, and 4.75 is furthest above.
    """
    lines = PyramidBudgets().wanted(5, 12)
    assert lines == [23, Fraction(35, 2), 12, Fraction(13, 2), 1]
    assert on_grid(lines, 16, 4) == (28, 20, 16, 8, 8)
    assert sum((28, 20, 16, 8, 8)) == 5 * 16
    assert PyramidBudgets().wanted(1, 12) == [12]
    assert PyramidBudgets(beta=3).wanted(2, 12) == [20, 4]
    assert resolve_budgets("pyramid:beta=3", 16, 4, 2) == ((24, 8), None)


def test_even_lists_are_no_budgets():
    assert resolve_budgets([8, 8, 8], 8, 2, 3) == (None, None)
    options: dict[str, Any] = {"window": 8, "evict_fraction": 0.25, "eviction": "h2o"}
    found = [
        tc.rollout(tiny_model(**options, **more), PROMPTS, max_new_tokens=13, ignore_eos=True)
        for more in ({}, {"eviction_budgets": [8, 8]})
    ]
    for plain, listed in zip(*found, strict=True):
        assert listed.settings.budgets is None
        assert plain.token_ids == listed.token_ids
        assert torch.equal(plain.logprobs, listed.logprobs)
        assert torch.equal(plain.states, listed.states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"eviction_budgets": "cone"},
            r"eviction_budgets='cone' is not known; choose one of \['even', 'headkv', 'adakv', 'pyramid'\], or give",
        ),
        ({"eviction_budgets": "pyramid:alpha=3"}, r"'alpha=3' is no setting of 'pyramid'; it has beta=20"),
        ({"eviction_budgets": "pyramid:beta=1"}, r"beta must be at least 2, got 1; at 1 budgets are even"),
        ({"eviction_budgets": [8, 0]}, r"eviction_budgets=\[8, 0\] must be integers of at least 1 thought"),
        ({"eviction_budgets": []}, r"eviction_budgets=\[\] must be integers"),
        ({"eviction_budgets": [1, 15]}, r"2 thoughts leave at once, so that no layer can hold fewer; raise"),
        ({"eviction_budgets": [7, 9, 8]}, r"must differ by multiples of the 2 thoughts that leave at once"),
        ({"eviction_budgets": [8, 10]}, r"have the mean 9, and window=8 is the mean"),
        ({"eviction_budgets": [6, 10], "window": None}, r"changes nothing with window=None, where nothing leaves"),
    ],
)
def test_what_no_model_makes_right_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ThoughtConfig(**{"window": 8, "evict_fraction": 0.25, **options})


def test_budgets_of_another_model_are_refused(tmp_path):
    options = {"window": 8, "evict_fraction": 0.25}
    with pytest.raises(ValueError, match=r"\[6, 8, 10\] are 3 budgets, and the model has 2 layers; give one per layer"):
        tiny_model(**options, eviction_budgets=[6, 8, 10])
    with pytest.raises(ValueError, match=r"'pyramid' comes to even budgets at window=2 .* lower evict_fraction"):
        tiny_model(window=2, evict_fraction=0.5, eviction_budgets="pyramid")
    with pytest.raises(ValueError, match=r"'pyramid' is shared out over the layers of a model, and no model is known"):
        ThoughtConfig(**options, eviction_budgets="pyramid").resolve_window(None)
    model = tiny_model(**options, eviction_budgets=[6, 10])
    with pytest.raises(ValueError, match=r"have the mean 8, and window=9 is the mean"):
        tc.rollout(model, PROMPTS, max_new_tokens=9, window=9)
    rollouts = tc.rollout(
        tiny_model(base={"num_hidden_layers": 3}, **options, eviction_budgets=[6, 8, 10]), PROMPTS, max_new_tokens=9
    )
    with pytest.raises(ValueError, match=r"budgets of 3 layers, and the model has 2"):
        tc.replay(model, rollouts)
    mixed = [tc.rollout(one, PROMPTS[:1], max_new_tokens=9)[0] for one in (tiny_model(**options), model)]
    with pytest.raises(ValueError, match=r"rollout 1 was sampled with budgets=\(6, 10\), rollout 0 with budgets=None"):
        tc.replay(model, mixed)
    # With another window a name is shared out anew, and nothing is left of it without one.
    named = tiny_model(**options, eviction_budgets="pyramid")
    (rollout,) = tc.rollout(named, PROMPTS[:1], max_new_tokens=9, window=12)
    assert rollout.settings.budgets == resolve_budgets("pyramid", 12, 3, 2)[0]
    assert tc.rollout(named, PROMPTS[:1], max_new_tokens=9, window=None)[0].settings.budgets is None
    # A saved adapter has its budgets.
    named.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_base(), str(tmp_path))
    cache = loaded.base_model.thought_config.resolve_window(None)
    assert cache.budgets == resolve_budgets("pyramid", 8, 2, 2)[0]
    assert loaded.base_model.thought_config.behaviour()["eviction_budgets"] == "pyramid"


def test_passcodes_are_refused():
    task = PasscodeTask(
        tokenizer=word_tokenizer(),
        cache=CacheSettings(window=8, num_evicted=2, eviction="sliding", budgets=(6, 10)),
    )
    with pytest.raises(ValueError, match=r"eviction_budgets=\[6, 10\] evict a code at other times in every layer"):
        task.episode(0, 1)


def test_forward_passes_without_our_cache_stay_below_the_smallest_budget():
    model = tiny_model(window=6, evict_fraction=1 / 3, eviction_budgets=[4, 8])
    model(input_ids=torch.tensor([[3, 1, 4, 1, 5]]))
    with pytest.raises(ValueError, match=r"5 tokens behind its prompt of 1 under a window of 4"):
        model(input_ids=torch.tensor([[3, 1, 4, 1, 5, 9]]))
