"""Stop sequences end a row with the token that completes the first of them, however many tokens they have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import thoughtcache as tc
from support.models import tiny_model
from thoughtcache.sampler.draw.stop_sequences import count_sequence, ends_with, find_end

letters = st.lists(st.integers(0, 2), max_size=12)
patterns = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=3)


def text(tokens) -> str:
    return "".join(map(str, tokens))


@given(letters, patterns, st.integers(0, 12))
def test_the_first_end_is_that_of_the_shortest_prefix(tokens, sequences, start):
    expected = next(
        (n for n in range(start + 1, len(tokens) + 1) if text(tokens[:n]).endswith(tuple(map(text, sequences)))), None
    )
    assert find_end(tokens, sequences, start) == expected


@given(letters, st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_counts_and_ends_are_those_of_texts(tokens, sequence):
    assert count_sequence(tokens, sequence) == text(tokens).count(text(sequence))
    assert ends_with(tokens, sequence) == text(tokens).endswith(text(sequence))


@pytest.mark.parametrize("num_slots", [1, 3])
def test_rows_end_with_the_token_that_completes_one(num_slots):
    model = tiny_model()
    prompts = [[3, 1, 4], [6, 5], [9]]
    free = tc.rollout(model, prompts, max_new_tokens=17, ignore_eos=True)
    pair, single = free[0].token_ids[4:6], free[2].token_ids[11:12]
    engine = tc.Engine(model, num_slots=num_slots)
    ended = engine.run(
        tc.Request(prompt_ids=prompt, max_new_tokens=17, row=row, ignore_eos=True, stop_sequences=[pair, single])
        for row, prompt in enumerate(prompts)
    )
    for short, long in zip(ended, free, strict=True):
        end = find_end(long.token_ids, [pair, single])
        assert short.token_ids == long.token_ids[:end]
        assert short.finish_reason == ("length" if end is None else "stop")
    assert len(ended[0].token_ids) <= 6


def test_what_ends_nothing_or_everything_is_refused():
    model = tiny_model()
    engine = tc.Engine(model, num_slots=1)
    for sequences, message in (
        ([[]], "stop sequence 0 is empty"),
        ([[1], [99]], "stop sequence 1 holds token 99 at place 0"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.add(tc.Request(prompt_ids=[1], max_new_tokens=3, stop_sequences=sequences))
    with pytest.raises(ValueError, match="leave out filters and stop rules"):
        tc.Request(prompt_ids=[1], max_new_tokens=1, given_tokens=[2], stop_sequences=[[3]])
