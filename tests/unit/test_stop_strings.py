"""Stop strings are found where the text first holds one: inside tokens, across tokens, across bytes of a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from thoughtcache.sampler.draw.stop_strings import StopStrings, make_stop_strings

PIECES = ["ab", "abc", "bc", "END", "EN", "D.", "é", "\n\n", "<e>"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; a few tokens hold several."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(PIECES[:-1])
    tokenizer.add_special_tokens([PIECES[-1]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = byte_tokenizer()
SIZE = len(TOKENIZER)


def decode(tokens) -> str:
    return TOKENIZER.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def spelled(text: str) -> list[int]:
    """One token per byte."""
    (pieces,) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text) or [("", None)]
    return [TOKENIZER.convert_tokens_to_ids(letter) for letter in pieces[0]]


def piece(text: str) -> int:
    return TOKENIZER.convert_tokens_to_ids(text)


def naive_end(tokens: list[int], strings: list[str]) -> int | None:
    """The shortest prefix whose whole text holds a stop string."""
    for end in range(1, len(tokens) + 1):
        if any(string in decode(tokens[:end]) for string in strings):
            return end
    return None


def first_end(tokens: list[int], strings: list[str], *, step: int, start: int = 0) -> int | None:
    """As the engine looks: at `step` more tokens at a time."""
    search = StopStrings(strings, decode)
    for known in range(0, len(tokens), step):
        end = search.find(tokens[: known + step], max(known, start))
        if end is not None:
            return end
    return None


def test_across_tokens_inside_a_token_and_special_tokens():
    tokens = [*spelled("x"), piece("EN"), piece("D."), *spelled("yz")]
    assert first_end(tokens, ["END"], step=1) == 3
    assert first_end(tokens, ["D."], step=1) == 3
    assert first_end(tokens, ["D.y"], step=1) == 4
    assert first_end(tokens, ["ENDS"], step=1) is None
    assert first_end([*spelled("x"), piece("<e>")], ["<e>"], step=1) == 2


def test_a_character_of_several_bytes_is_complete_with_its_last_one():
    tokens = spelled("caf" + "é!")
    assert len(tokens) == 6
    assert first_end(tokens, ["é"], step=1) == 5
    assert first_end(tokens, ["fé!"], step=1) == 6


def test_an_end_before_the_minimum_does_not_count():
    tokens = spelled("ab.ab.ab")
    assert first_end(tokens, ["b."], step=1, start=0) == 3
    assert first_end(tokens, ["b."], step=1, start=2) == 3
    assert first_end(tokens, ["b."], step=1, start=3) == 6
    assert first_end(tokens, ["b."], step=1, start=6) is None


def test_a_long_text_in_front_costs_nothing():
    decoded = []

    def counted(tokens) -> str:
        decoded.append(len(tokens))
        return decode(tokens)

    search = StopStrings(["END"], counted)
    assert search.find([*spelled("x" * 500), piece("END")], 500) == 501
    assert max(decoded) <= 1 + search.reach


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.one_of(st.sampled_from([piece(p) for p in PIECES]), st.integers(0, SIZE - 1)), max_size=40),
    strings=st.lists(
        st.one_of(
            st.sampled_from([*PIECES, "abca", "cab", "Dé", "EEN", "a"]), st.text("abcENDé.\n", min_size=1, max_size=6)
        ),
        min_size=1,
        max_size=3,
    ),
    step=st.integers(1, 17),
)
def test_the_shortest_prefix_that_holds_one_however_rarely_one_looks(tokens, strings, step):
    assert first_end(tokens, strings, step=step) == naive_end(tokens, strings)


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab.", max_size=40), start=st.integers(0, 12), step=st.integers(1, 17))
def test_minimum_length_however_rarely_one_looks(text, start, step):
    expected = next((end for end in range(start + 1, len(text) + 1) if text[:end].endswith("ab.")), None)
    assert first_end(spelled(text), ["ab."], step=step, start=start) == expected


@pytest.mark.parametrize("strings", [[""], ["ok", ""], ["a\ufffd"]])
def test_strings_that_cannot_be_looked_for(strings):
    with pytest.raises(ValueError, match="at least one character and without U"):
        make_stop_strings(strings, TOKENIZER)


def test_a_tokenizer_is_needed():
    with pytest.raises(ValueError, match=r"stop_strings=\('END',\) need the text.*tokenizer= as well"):
        make_stop_strings(["END"], None)


def test_one_string_is_not_its_letters():
    found = make_stop_strings("END", TOKENIZER)
    assert found is not None
    assert found.strings == ("END",)
    assert make_stop_strings([], None) is None
