"""Boundaries of chains: what is carried, by hand and by the definition; which steps count; what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from thoughtcache.chains.given import split_trace
from thoughtcache.chains.markovian import carried
from thoughtcache.chains.sample import link_seed

QUESTION = [90, 91]
OPEN, CLOSE, TLDR = [7, 8], [9], [60, 61]
STEPS = tc.StepFolding(opening=OPEN, closing=CLOSE, separator=TLDR, max_steps=4, step_tokens=9, summary_tokens=3)


def naive_carried(thoughts: list[int], keep_first: int, keep_last: int) -> list[int]:
    return [t for i, t in enumerate(thoughts) if i < keep_first or i >= len(thoughts) - keep_last]


def starts(pairs) -> list[int]:
    found = [0]
    for _, link in pairs:
        found.append(found[-1] + len(link))
    return found[:-1]


@given(st.lists(st.integers(), max_size=12), st.integers(0, 6), st.integers(0, 6))
def test_carried_thoughts_are_the_first_and_the_last_ones(thoughts, keep_first, keep_last):
    assert carried(thoughts, keep_first, keep_last) == naive_carried(thoughts, keep_first, keep_last)


def test_published_sizes_are_the_defaults():
    thinking = tc.MarkovianThinking()
    assert (thinking.context, thinking.num_carried, thinking.num_links) == (8192, 4096, 5)
    assert thinking.total_tokens == 24_576
    assert [thinking.max_new_tokens([range(n)] if n else []) for n in (0, 8192)] == [8192, 4096]
    assert thinking.longest(1000, 24_576) == [(1000, 8192), (5096, 4096)]
    folding = tc.StepFolding(opening=OPEN, closing=CLOSE)
    assert (folding.num_links, folding.step_tokens, folding.summary_tokens) == (6, 6144, 1536)
    assert folding.longest(100, 36_864) == [(100, 6144), (100 + 5 * 1539, 6144)]
    assert folding.longest(14_000, 36_864) == [(14_000, 6144), (14_336, 6144)]
    assert folding.unfolded().total_tokens == 16_384


def test_what_is_carried_was_sampled_from_the_same_budget():
    folding = tc.StepFolding(opening=OPEN, closing=CLOSE, separator=TLDR)
    # 4095 tokens in five summaries, each behind a separator of two, and one more thought.
    assert folding.longest(100, 4096) == [(100, 4096), (100 + 5 * 2 + 4095, 1)]
    assert folding.longest(100, 4) == [(100, 4), (105, 1)], "one step, the smallest one"
    assert folding.longest(100, 3) == [(100, 3)]
    assert folding.unfolded().longest(100, 4096) == [(100, 4096)]
    assert tc.MarkovianThinking().longest(100, 9000) == [(100, 8192), (4196, 808)]
    assert tc.MarkovianThinking().longest(100, 8000) == [(100, 8000)]


def test_a_trace_of_numbers_under_markovian_thinking_by_hand():
    thinking = tc.MarkovianThinking(context=6, keep_first=1, keep_last=2, max_links=3)
    pairs, end = split_trace(thinking, QUESTION, list(range(20)))
    assert pairs == [
        ([90, 91], [0, 1, 2, 3, 4, 5]),
        ([90, 91, 0, 4, 5], [6, 7, 8]),
        ([90, 91, 0, 7, 8], [9, 10, 11]),
    ]
    assert end == "length"
    assert split_trace(thinking, QUESTION, list(range(8)))[1] == "stop"
    assert thinking.total_tokens == 12


def test_a_trace_of_three_steps_has_the_resident_tokens_of_the_definition():
    first, second, third = [11, 12, 13, *OPEN, 14, *CLOSE], [21, *OPEN, 24, 25, *CLOSE], [31, 32, *OPEN, *CLOSE]
    trace = [*first, *second, *third, 41, 42]
    pairs, end = split_trace(STEPS, QUESTION, trace)
    one, two, three = [60, 61, 7, 8, 14, 9], [60, 61, 7, 8, 24, 25, 9], [60, 61, 7, 8, 9]
    assert pairs == [
        (QUESTION, first),
        ([*QUESTION, *one], second),
        ([*QUESTION, *one, *two], third),
        ([*QUESTION, *one, *two, *three], [41, 42]),
    ]
    assert end == "stop"
    # What each thought sees, one by one.
    boundaries = starts(pairs)[1:]
    resident = [STEPS.naive_context(QUESTION, trace, boundaries, t) for t in range(len(trace))]
    assert resident[0] == QUESTION
    assert resident[6] == [*QUESTION, 11, 12, 13, 7, 8, 14]  # the marker closes behind the whole first step
    assert resident[7] == [*QUESTION, *one]
    assert resident[12] == [*QUESTION, *one, 21, 7, 8, 24, 25]
    assert resident[13] == [*QUESTION, *one, *two]
    assert resident[18] == [*QUESTION, *one, *two, *three]
    assert resident[19] == [*QUESTION, *one, *two, *three, 41]
    whole, end = split_trace(STEPS.unfolded(), QUESTION, trace)
    assert (whole, end) == ([(QUESTION, trace)], "stop")


traces = st.lists(st.one_of(st.sampled_from([*OPEN, *CLOSE]), st.integers(0, 9)), min_size=1, max_size=40)
sizes = st.one_of(
    st.fixed_dictionaries({
        "context": st.integers(6, 12),
        "keep_first": st.integers(0, 3),
        "keep_last": st.integers(0, 2),
        "max_links": st.integers(2, 5),
    }),
    st.fixed_dictionaries({
        "opening": st.just(OPEN),
        "closing": st.just(CLOSE),
        "separator": st.sampled_from([[], TLDR]),
        "fold": st.booleans(),
        "max_steps": st.integers(2, 5),
        "step_tokens": st.integers(3, 12),
        "summary_tokens": st.integers(0, 4),
        "max_prompt_tokens": st.integers(3, 30),
        "unfold_tokens": st.integers(1, 50),
    }),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(traces, sizes)
def test_prompts_are_the_contexts_of_the_definition(trace, sizes):
    thinking = tc.StepFolding(**sizes) if "opening" in sizes else tc.MarkovianThinking(**sizes)
    pairs, end = split_trace(thinking, QUESTION, trace)
    links = [link for _, link in pairs]
    sampled = [token for link in links for token in link]
    assert sampled == trace[: len(sampled)]
    assert 1 <= len(links) <= thinking.num_links
    assert len(sampled) <= thinking.total_tokens
    assert len(sampled) == len(trace) or end != "stop"
    found = starts(pairs)
    for (prompt, link), start in zip(pairs, found, strict=True):
        for offset in range(len(link)):
            expected = thinking.naive_context(QUESTION, sampled, found[1:], start + offset)
            assert [*prompt, *link[:offset]] == expected
    most = thinking.longest(len(QUESTION), len(sampled))
    needed = [(len(prompt), len(link)) for prompt, link in pairs if link]
    for window in (0, 1, 3, 5, 99):
        assert max(p + min(t, window) for p, t in needed) <= max(p + min(t, window) for p, t in most)
    assert max(t for _, t in needed) <= max(t for _, t in most)


@pytest.mark.parametrize(
    ("link", "after"),
    [
        ([1, *OPEN, 2, *CLOSE], "next"),
        ([*OPEN, *CLOSE], "next"),
        ([*OPEN, 1, 2, 3, *CLOSE], "next"),
        ([*OPEN, 1, 2, 3, 4, *CLOSE], "invalid"),  # four tokens, three are allowed
        ([1, *CLOSE], "invalid"),  # never opened
        ([*OPEN, 1, *OPEN, *CLOSE], "invalid"),  # opened twice
        ([1, 2, 3], "stop"),
        ([*OPEN, 1], "stop"),
    ],
)
def test_a_step_counts_with_one_marker_of_each_kind_and_a_short_summary(link, after):
    assert STEPS.after(QUESTION, [link], stopped=True) == after
    last = STEPS.after(QUESTION, [[*OPEN, *CLOSE]] * 3 + [link], stopped=True)
    assert last == ("length" if after == "next" else after), "a fifth link is not allowed"


def test_a_chain_ends_where_the_next_prompt_would_be_too_long():
    short = tc.StepFolding(opening=OPEN, closing=CLOSE, separator=TLDR, max_prompt_tokens=9)
    assert short.after(QUESTION, [[*OPEN, *CLOSE]], stopped=True) == "next"  # 2 + 2 + 3 tokens
    assert short.after(QUESTION, [[*OPEN, 1, 2, 3, *CLOSE]], stopped=True) == "length"


def test_settings_of_folding_are_not_asked_for_without_it():
    assert tc.StepFolding(opening=OPEN, closing=CLOSE, max_steps=1, fold=False).num_links == 1
    STEPS.check(14_331, 99)


def test_a_budget_that_runs_out_is_no_stop():
    assert STEPS.after(QUESTION, [[1, 2]], stopped=False) == "length"
    assert STEPS.unfolded().after(QUESTION, [[1, *CLOSE]], stopped=True) == "stop"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tc.MarkovianThinking(context=6, keep_first=2, keep_last=4), "fill the context of 6 thoughts"),
        (lambda: tc.MarkovianThinking(keep_first=-1), "keep_first must be 0 or more thoughts, got -1"),
        (lambda: tc.MarkovianThinking(max_links=1), "max_links must be at least 2, got 1"),
        (lambda: tc.MarkovianThinking(context=0), "context must be at least 1, got 0"),
        (lambda: tc.StepFolding(opening=[], closing=CLOSE), "opening is an empty marker"),
        (lambda: tc.StepFolding(opening=[9, 1], closing=CLOSE), "contains the other"),
        (lambda: tc.StepFolding(opening=OPEN, closing=CLOSE, max_steps=1), "or set fold=False"),
        (lambda: tc.StepFolding(opening=OPEN, closing=CLOSE, summary_tokens=-1), "0 or more, got -1"),
        (lambda: tc.StepFolding(opening=OPEN, closing=CLOSE, step_tokens=0), "step_tokens must be at least 1"),
        (lambda: tc.MarkovianThinking().check(10, 8192), "no chain has a boundary; raise it to as much as 24576"),
        (lambda: STEPS.check(14_332, 99), "14332 tokens, 14337 with the separator .* raise max_prompt_tokens to 14337"),
        (lambda: STEPS.check(10, 3), "hold no step: its markers alone have 3 tokens"),
    ],
)
def test_sizes_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_link_has_numbers_of_its_own():
    seeds = {link_seed(seed, row, number) for seed in range(4) for row in range(4) for number in range(4)}
    assert len(seeds) == 64
    assert link_seed(5, 3, 0) == (5, 3)
    assert all(abs(seed) < 2**40 for seed, _ in seeds)
