"""Budgets by kv head: columns and events, a worked example by hand, what is refused, and who looks at heads."""

from __future__ import annotations

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
from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.cache.budgets import LayerBudgets, resolve_budgets
from thoughtcache.cache.budgets.heads import HeadColumns
from thoughtcache.cache.eviction import make_eviction_policy
from thoughtcache.cache.eviction.view import EvictionView
from thoughtcache.cache.query_log import QueryLog, Sight
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.chunk import batch_chunks
from thoughtcache.learner.kv_log import KVLog
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings
from thoughtcache.sampler.given import given_text, rollouts_of_given
from thoughtcache.studies.anatomy import by_thought, probe_anatomy
from thoughtcache.studies.sinks import masses
from thoughtcache.tasks.recall.passcode import PasscodeTask
from thoughtcache_cli.options.eviction import budgets as read_budgets

# Heads of budgets 4 and 8 in the first layer, 6 and 6 in the second; 2 leave at once.
BY_HAND = LayerBudgets(window=6, num_evicted=2, sizes=(8, 6), heads=((4, 8), (6, 6)))


def test_events_by_hand():
    assert (BY_HAND.smallest, BY_HAND.largest, BY_HAND.num_opening, BY_HAND.firsts) == (4, 8, 2, (4, 6))
    assert [[BY_HAND.is_due(layer, event) for layer in range(2)] for event in range(3)] == [
        [True, False], [True, True], [True, True],
    ]  # fmt: skip
    first = BY_HAND.of_heads(0)
    assert isinstance(first, HeadColumns)
    assert first.groups == ((4, [0]), (8, [1]))
    assert [first.due(event) for event in range(3)] == [(True, False), (True, False), (True, True)]
    # Columns: 4, then 6 of which the first head has two blank ones, then 8 of which four, and from then on 8 again.
    assert [first.num_columns(event) for event in range(4)] == [4, 6, 8, 8]
    assert [first.sheds(event) for event in range(4)] == [False, False, True, True]
    assert [first.blank(events) for events in range(5)] == [(0, 0), (2, 0), (4, 0), (4, 0), (4, 0)]
    assert [first.num_gone(events) for events in range(5)] == [(0, 0), (2, 0), (4, 0), (6, 2), (8, 4)]
    assert [BY_HAND.sheds(1, event) for event in range(3)] == [False, True, True]
    assert [BY_HAND.place(1, event) for event in range(2)] == [1, 1]
    # The next token falls once the largest head of all evicts.
    assert [BY_HAND.roll(event) for event in range(4)] == [0, 0, 2, 2]


@given(
    num_inputs=st.integers(0, 60),
    smallest=st.integers(1, 9),
    steps=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    num_evicted=st.integers(1, 9),
)
def test_a_head_evicts_as_if_its_budget_were_the_window(num_inputs, smallest, steps, num_evicted):
    """Thoughts of every head, token by token, beside the columns and the blank ones that are counted."""
    assume(smallest >= num_evicted)
    sizes = tuple(smallest + num_evicted * step for step in steps)
    columns = HeadColumns(sizes=sizes, smallest=min(sizes), num_evicted=num_evicted)
    held, width, events = [0] * len(sizes), 0, 0
    for token in range(num_inputs):
        if token == min(sizes) + events * num_evicted:
            due = columns.due(events)
            assert due == tuple(count == size for count, size in zip(held, sizes, strict=True))
            assert width == columns.num_columns(events) == max(held)
            held = [count - num_evicted * full for count, full in zip(held, due, strict=True)]
            width -= num_evicted * columns.sheds(events)
            events += 1
        assert [width - count for count in held] == list(columns.blank(events))
        held, width = [count + 1 for count in held], width + 1
        assert all(count <= size for count, size in zip(held, sizes, strict=True))


def test_resident_sets_by_hand():
    """Thoughts that leave and stay, counted from 0; slots count what the head holds, and -1 is no slot."""
    none = [-1, -1]
    slots = [[[[1, 2], none]], [[[0, 3], none], [[0, 1], [4, 5]]], [[[0, 1], [0, 5]], [[2, 3], [0, 1]]]]
    evictions = tuple(
        tc.records.Eviction(before_token=4 + 2 * event, num_tokens=2, slots=torch.tensor(chosen).short())
        for event, chosen in enumerate(slots)
    )
    settings = tc.records.SamplingSettings(
        temperature=1.0, max_new_tokens=10, window=6, num_evicted=2, eviction="random", seed=0, ignore_eos=True,
        budgets=(8, 6), head_budgets=((4, 8), (6, 6)),
    )  # fmt: skip
    rollout = tc.Rollout(
        prompt_ids=[5, 5], token_ids=list(range(10)), logprobs=torch.zeros(10), evictions=evictions,
        finish_reason="length", settings=settings,
    )  # fmt: skip
    batch = batch_rollouts([rollout], torch.device("cpu"))
    first, second, third = (event[0].tolist() for event in batch.leaving_thoughts)
    assert first[0][0] == [1, 2]  # of 0 1 2 3
    assert second[0][0] == [0, 5]  # of 0 3 4 5
    assert second[1] == [[0, 1], [4, 5]]  # of 0 .. 5
    assert third == [[[3, 4], [0, 5]], [[4, 5], [0, 1]]]  # of 3 4 6 7, of 0 .. 7; of 2 .. 7, of 0 1 2 3 6 7
    found = [one for one in KVLog(batch, batch_chunks(batch), "device").resident if one is not None]
    assert [[row.tolist() for row in one.of_layer(0, 1)[0]] for one in found] == [
        [[0, 1, 2, 3], [0, 1, 2, 3]],
        [[0, 0, 0, 3, 4, 5], [0, 1, 2, 3, 4, 5]],  # two blank columns, in which 0 stands
        [[0, 0, 0, 0, 3, 4, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]],
    ]
    assert [one.of_layer(1, 1)[0].tolist() for one in found][2] == [[2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 6, 7]]


@pytest.mark.parametrize("positions", ["absolute", "rolling"])
def test_columns_of_a_cache_by_hand(positions):
    """What is there after every token, blank columns included, and where the next token stands."""
    model = tiny_model(window=6, evict_fraction=1 / 3, eviction_budgets=[[4, 8], [6, 6]], positions=positions)
    tuner = model.base_model
    cache = tuner.new_cache(tuner.thought_config.resolve_window(None), max_new_tokens=12)
    thoughts, held, blank = torch.tensor([[7, 3, 5, 9, 2, 8, 4, 1, 6, 3, 2, 5]]), [], []
    with torch.no_grad():
        argument = cache_keyword(model.base_model.model, cache)
        model(input_ids=torch.tensor([[9, 1]]), **argument)
        for step in range(12):
            model(input_ids=thoughts[:, step : step + 1], **argument)
            held.append([layer.length - 2 for layer in cache.layers])
            blank.append([bool(torch.all(cache.layers[0].keys[0, head, 2] == 0)) for head in range(2)])
    assert [row[0] for row in held] == [1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 7, 8]
    assert [row[1] for row in held] == [1, 2, 3, 4, 5, 6, 5, 6, 5, 6, 5, 6]
    assert blank == [[False, False]] * 4 + [[True, False]] * 8


def test_a_policy_sees_the_full_heads_of_one_budget_at_a_time(monkeypatch):
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    class Told:
        def __get__(self, policy: Any, kind: Any) -> Any:
            def select(view: EvictionView) -> torch.Tensor:
                seen.append((view.layer_index, view.first_head, tuple(view.keys.shape[1:3])))
                return torch.arange(2).expand(view.keys.shape[0], view.keys.shape[1], -1)

            return select

    monkeypatch.setattr("thoughtcache.cache.eviction.policies.random.RandomEviction.select", Told())
    model = tiny_model(window=6, evict_fraction=1 / 3, eviction_budgets=[[8, 4], [6, 6]], eviction="random")
    tc.rollout(model, PROMPTS[:1], max_new_tokens=10, ignore_eos=True)
    assert seen == [
        (0, 1, (1, 4)),
        (0, 1, (1, 4)), (1, 0, (2, 6)),
        (0, 1, (1, 4)), (0, 0, (1, 8)), (1, 0, (2, 6)),
    ]  # fmt: skip


def test_queries_do_not_see_blank_columns():
    """Weights and running scores of a head are those that it has without them; other heads are left alone."""
    logs = [QueryLog(make_eviction_policy("h2o"), num_queries=2, windows=[6], scaling=0.7) for _ in range(2)]
    queries, keys = torch.randn(2, 1, 4, 1, 3, dtype=torch.float64), torch.randn(1, 2, 9, 3, dtype=torch.float64)
    for log in logs:
        log.allocate(1, (4, 2, 3), torch.float64, torch.device("cpu"))
        for one in queries:
            log.observe(0, one)
            log.advance(True)

    def sight(log: QueryLog, columns: int) -> Sight:
        sizes = torch.tensor([columns]), torch.tensor([3])  # three columns of the prompt
        return log.sight(slice(None), [2], columns, *sizes, num_thoughts=columns - 3)

    part = sight(logs[0], 9).of_heads([1], 4, 2)
    logs[0].hear(0, part, keys)
    held = keys[:, :, [0, 1, 2, 5, 6, 7, 8]]
    expected = logs[1].attended(0, sight(logs[1], 7), held).weights()[:, 1:]
    torch.testing.assert_close(logs[0].attended(0, part, keys).weights(), expected)
    scores = logs[0].scores[0]
    assert scores is not None
    torch.testing.assert_close(scores[:, 1:, :4], expected.sum(dim=(2, 3)))
    assert not scores[:, 0].any()


def test_heads_draw_numbers_of_their_own():
    """The control takes other thoughts in every head, in those of other budgets too."""
    model = tiny_model(window=20, evict_fraction=0.05, eviction_budgets=[[20, 20], [19, 21]], eviction="random")
    (rollout,) = tc.rollout(model, PROMPTS[:1], max_new_tokens=90, ignore_eos=True)
    chosen = torch.stack([event.slots[:, :, 0] for event in rollout.evictions[4:]]).float()
    assert abs(torch.corrcoef(chosen[:, 1].T)[0, 1]) < 0.35


def test_lists_of_equal_heads_are_budgets_by_layer():
    assert resolve_budgets([[6, 6], [10, 10]], 8, 2, 2, 2) == ((6, 10), None)
    assert resolve_budgets([[8, 8], [8, 8]], 8, 2, 2, 2) == (None, None)
    assert resolve_budgets([[4, 8], [10, 10]], 8, 2, 2, 2) == ((8, 10), ((4, 8), (10, 10)))
    even = {"window": 8, "evict_fraction": 0.25, "eviction": "h2o"}
    plain, listed = (
        tc.rollout(tiny_model(**even, **more), PROMPTS, max_new_tokens=13, ignore_eos=True)
        for more in ({}, {"eviction_budgets": [[8, 8], [8, 8]]})
    )
    for one, other in zip(plain, listed, strict=True):
        assert one.settings == other.settings
        assert torch.equal(one.logprobs, other.logprobs)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([[6, 10], [8]], r"\[\[6, 10\], \[8\]\] must be integers .* one list per layer with one integer per kv head"),
        ([[6, 10], 8], r"\[\[6, 10\], 8\] must be integers"),
        ([[6, 10], [8, 0]], r"must be integers of at least 1 thought"),
        ([[], []], r"must be integers"),
        ([[1, 15], [8, 8]], r"2 thoughts leave at once, so that no head can hold fewer; raise"),
        ([[7, 9], [8, 8]], r"must differ by multiples of the 2 thoughts that leave at once, so that all heads evict"),
        ([[8, 10], [8, 10]], r"have the mean 9, and window=8 is the mean"),
    ],
)
def test_what_no_model_makes_right_is_refused(budgets, message):
    with pytest.raises(ValueError, match=message):
        ThoughtConfig(window=8, evict_fraction=0.25, eviction_budgets=budgets)


def test_budgets_of_another_model_are_refused(monkeypatch, tmp_path):
    options = {"window": 8, "evict_fraction": 0.25}
    with pytest.raises(ValueError, match=r"are budgets of 4 kv heads, and a layer of the model has 2; give one number"):
        tiny_model(**options, eviction_budgets=[[6, 10, 8, 8]] * 2)
    with pytest.raises(ValueError, match=r"are 3 budgets, and the model has 2 layers"):
        tiny_model(**options, eviction_budgets=[[6, 10]] * 3)
    model = tiny_model(**options, eviction_budgets=[[6, 10], [8, 8]])
    mixed = [tc.rollout(one, PROMPTS[:1], max_new_tokens=9)[0] for one in (tiny_model(**options), model)]
    with pytest.raises(ValueError, match=r"rollout 1 was sampled with budgets=\(10, 8\), rollout 0 with budgets=None"):
        tc.replay(model, mixed)
    task = PasscodeTask(tokenizer=word_tokenizer(), cache=model.base_model.thought_config.resolve_window(None))
    with pytest.raises(ValueError, match=r"eviction_budgets=\[\(6, 10\), \(8, 8\)\] evict a code at other times"):
        task.episode(0, 1)
    with pytest.raises(ValueError, match=r"5 tokens behind its prompt of 1 under a window of 4"):
        tiny_model(window=6, evict_fraction=1 / 3, eviction_budgets=[[4, 8], [6, 6]])(
            input_ids=torch.tensor([[3, 1, 4, 1, 5, 9]])
        )
    # A saved adapter has its budgets.
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_base(), str(tmp_path)).base_model.thought_config
    assert loaded.eviction_budgets == [[6, 10], [8, 8]]
    assert loaded.resolve_window(None) == CacheSettings(
        window=8, num_evicted=2, eviction="sliding", budgets=(10, 8), head_budgets=((6, 10), (8, 8))
    )
    # Attention that takes no mask by head is refused before anything runs.
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    tuner = find_tuner(model)
    assert isinstance(tuner, ThoughtModel)
    with pytest.raises(ValueError, match="need a mask by head, which attn_implementation='flash_attention_2' does not"):
        tuner.window_rules(loaded.resolve_window(None), tuner.memory())


def test_the_command_line_reads_heads_between_slashes():
    assert read_budgets("12,4/6,10") == [[12, 4], [6, 10]]
    assert read_budgets("6,10") == [6, 10]
    assert read_budgets("8/8") == [[8], [8]]
    assert read_budgets("pyramid:beta=8") == "pyramid:beta=8"


def test_masses_without_blank_columns():
    queries, keys = torch.randn(1, 4, 1, 5, dtype=torch.float64), torch.randn(1, 2, 6, 5, dtype=torch.float64)
    blank = torch.zeros(1, 2, 1, 6, dtype=torch.bool)
    blank[0, 1, 0, 1:3] = True
    groups = torch.ones(1, 6, 1, dtype=torch.bool)
    groups[0, 0] = False
    found, size = masses(queries, keys, torch.ones(1, 6, dtype=torch.bool), 0.7, groups, blank)
    for head, columns in ((1, range(6)), (2, (0, 3, 4, 5))):
        weights = [float((0.7 * queries[0, head, 0] @ keys[0, head // 2, column]).exp()) for column in columns]
        assert size[0, head, 0].exp().item() == pytest.approx(sum(weights))
        assert found[0, head, 0, 0].item() == pytest.approx(1 - weights[0] / sum(weights))


def test_only_full_heads_are_told_of_in_the_anatomy():
    thoughts = torch.tensor([[[0, 2], [-3, -2]]])
    assert by_thought(torch.tensor([[[4.0, 2.0]]]), thoughts, 4, (True, False)).tolist() == [[[4, 0, 2, 0]]]
    model = tiny_model(
        window=5, evict_fraction=0.2, eviction_budgets=[[4, 6], [5, 5]], memory="attention", memory_features=6,
        eviction="snapkv",
    )  # fmt: skip
    texts = [([3, 1, 4], [5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]), ([2, 7], [1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0])]
    found = probe_anatomy(model, texts)
    cache = find_tuner(model).thought_config.resolve_window(None)
    rollouts = [rollouts_of_given(model, [given_text(*text, cache, seed=row)])[0] for row, text in enumerate(texts)]
    for one in found.states:
        for event, norm in enumerate(one.norms):
            states = [row.states[event, one.layer, one.head, :, :-1] for row in rollouts]
            assert norm == pytest.approx(sum(float(state.norm()) for state in states) / 2)
    # One token leaves a full head at a time, and everything that was written stays: the last column counts.
    for row, rollout in enumerate(rollouts):
        counts = rollout.states[..., -1].sum(dim=-1)  # [N, L, H]
        grown = counts - torch.cat([torch.zeros_like(counts[:1]), counts[:-1]])
        shares = [0.0] * 12
        for layer, head in ((layer, head) for layer in range(2) for head in range(2)):
            resident = list(range(cache.head_budgets[layer][head]))
            for event, eviction in enumerate(rollout.evictions):
                full = [index for index in range(2) if min(cache.head_budgets[index]) <= eviction.before_token]
                slot = int(eviction.slots[full.index(layer), head, 0]) if layer in full else -1
                assert (grown[event, layer, head] == 0) == (slot < 0)
                if slot >= 0:
                    shares[resident.pop(slot)] += float(grown[event, layer, head] / counts[-1, layer, head]) / 4
                    resident.append(eviction.before_token)
        assert found.written["attention"][row] == pytest.approx(shares)
