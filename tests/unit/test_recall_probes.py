"""Codes by age and in other families: what is asked is what the tables say, and the counts are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from support.models import adapt, tiny_base
from thoughtcache.cache.eviction.policies.sliding import sliding_evictions
from thoughtcache.records import CacheSettings
from thoughtcache.studies import passcode
from thoughtcache.studies.ages import probe_ages
from thoughtcache.studies.capacity import probe_capacity
from thoughtcache.studies.families import ASKED_OTHERWISE, TAUGHT, families, probe_families
from thoughtcache.tasks.embedded.reasoner import build_tokenizer
from thoughtcache.tasks.recall.filler import OTHER_SENTENCES, TEST_FORMS, TRAINING_FORMS
from thoughtcache.tasks.recall.passcode import DIGITS, OTHER_WORDS, WORDS, PasscodeTask, words_for

CACHE = CacheSettings(window=12, num_evicted=3, eviction="sliding")


def tokenizer_of(*known: str) -> PreTrainedTokenizerFast:
    """For which words and full stops are tokens, and all others one."""
    words = ["[UNK]", "The", "secret", "words", "digits", "are", ".", *dict.fromkeys(known)]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


ALL = tokenizer_of(*WORDS, *OTHER_WORDS, *DIGITS)


def model_of() -> Any:
    options = {"window": 12, "evict_fraction": 0.25, "memory": "attention", "memory_features": 6}
    return adapt(tiny_base(vocab_size=64), **options)


class Asked:
    """Stands in the place of the model: keeps what is asked, and knows all answers but the last token of the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[Any] = []
        monkeypatch.setattr(passcode, "answer_logprobs", self)

    def __call__(self, model: Any, adapted: Any, texts: Sequence[Any], cache: Any, options: Any, *, seed: int) -> Any:
        self.texts.extend(texts)
        hits = torch.ones(len(texts), texts[0].num_answer)
        hits[0, -1] = 0.0
        return torch.full(hits.shape, -0.5), hits


@pytest.mark.parametrize("distance", [0, 2, 7])
def test_sentences_before_a_code_make_it_no_older(distance):
    task = PasscodeTask(tokenizer=ALL, cache=CACHE, length=2, is_test=True)
    alone, behind = task.episode(5, distance), task.episode(5, distance, 9)
    assert behind.token_ids[9:] == alone.token_ids
    assert replace(behind, token_ids=alone.token_ids) == alone
    code = alone.token_ids[-2:]
    assert alone.token_ids[4:6] == code
    assert alone.num_between == len(alone.token_ids) - 2 - 6


def test_accuracy_by_age(monkeypatch):
    asked, told = Asked(monkeypatch), []
    found = probe_ages(
        model_of(), ALL, ages=(2, 5), before=(0, 3), num_codes=4, code_length=2, batch_size=3, progress=told.append
    )
    assert told == [3, 1] * 4
    assert [(one.num_before, one.recall.num_evictions) for one in found] == [(0, 2), (0, 5), (3, 2), (3, 5)]
    for index, one in enumerate(found):
        texts = asked.texts[4 * index : 4 * index + 4]
        assert (one.recall.codes, one.recall.right_codes) == (4, 2)
        assert (one.recall.tokens, one.recall.right_tokens) == (8, 6)
        assert one.recall.nats == pytest.approx(0.5)
        answers = [len(text.token_ids) - 2 for text in texts]
        assert one.num_tokens == sum(answer - 9 * (one.num_before > 0) - 6 for answer in answers) / 4
        events = [len(sliding_evictions(answer, 12, 3)) for answer in answers]
        assert one.num_evictions == sum(events) / 4
    near, _, behind, _ = found
    assert behind.num_tokens == near.num_tokens
    assert behind.num_evictions == near.num_evictions + 3


def test_families_differ_in_one_thing(monkeypatch):
    asked, told = Asked(monkeypatch), []
    options: dict[str, Any] = {"distances": (3, 6), "num_codes": 2, "code_length": 2, "batch_size": 2}
    found = probe_families(model_of(), ALL, **options, progress=told.append)
    names = [TAUGHT, "other words", "digits", "another question", "other sentences", "one fact", "4 facts"]
    assert [one.family for one in found] == names
    assert told == [2] * 14
    number = {word: ALL.convert_tokens_to_ids(word) for word in (*WORDS, *OTHER_WORDS, *DIGITS)}
    choices = {"other words": OTHER_WORDS, "digits": DIGITS}
    lengths = {"one fact": 1, "4 facts": 4}
    for index, one in enumerate(found):
        texts = asked.texts[4 * index : 4 * index + 4]
        assert one.recall is not None
        assert [row.num_evictions for row in one.recall] == [3, 6]
        assert {text.num_answer for text in texts} == {lengths.get(one.family, 2)}
        known = {number[word] for word in choices.get(one.family, WORDS)}
        for text in texts:
            assert set(text.token_ids[-text.num_answer :]) <= known
            question = text.token_ids[: -text.num_answer][-4:]
            assert (question == ALL.encode(" The secret words are")) == (
                one.family not in ("digits", "another question")
            )
    assert not set(WORDS) & set(OTHER_WORDS)
    assert not set(OTHER_SENTENCES) & {*TRAINING_FORMS, *TEST_FORMS}
    assert families(code_length=1, kind="digits").keys() == {
        TAUGHT, "words", "another question", "other sentences", "2 facts",
    }  # fmt: skip
    settings = families(code_length=2, kind="words", own_sentences=["One.", "Two."])
    assert settings["other sentences"]["own_sentences"] == ["One.", "Two."]
    assert settings["another question"]["asked"] == ASKED_OTHERWISE


def test_a_family_that_the_tokenizer_does_not_know_is_left_out(monkeypatch):
    Asked(monkeypatch)
    few = tokenizer_of(*WORDS[:4])  # all others are one more
    options: dict[str, Any] = {"distances": (3,), "num_codes": 2, "code_length": 3}
    told: list[int] = []
    found = {one.family: one.recall for one in probe_families(model_of(), few, **options, progress=told.append)}
    assert [name for name, recall in found.items() if recall is None] == ["other words", "digits", "6 facts"]
    assert sum(told) == 2 * len(found)
    with pytest.raises(ValueError, match="kind='words': the tokenizer tells 1 of 16 of them apart"):
        probe_families(model_of(), tokenizer_of(), **options)


def test_the_real_model_answers(monkeypatch):
    """Nothing stands in its place: shares and nats are numbers."""
    (one,) = probe_ages(model_of(), ALL, ages=(2,), before=(1,), num_codes=2, code_length=2)
    assert 0 <= one.recall.low <= one.recall.right_codes / 2 <= one.recall.high <= 1
    assert one.recall.nats > 0


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="num_codes and batch_size must be at least 1, got 0 and 16"):
        probe_ages(model_of(), ALL, num_codes=0)
    with pytest.raises(ValueError, match=r"ages and before must be numbers of evictions from 0 on, got \(1,\) and"):
        probe_ages(model_of(), ALL, ages=(1,), before=(-1,))
    with pytest.raises(ValueError, match="distances must be numbers of evictions"):
        probe_families(model_of(), ALL, distances=())
    with pytest.raises(ValueError, match=r"the tokenizer cannot encode ' apple' .* need a model that knows letters"):
        probe_families(model_of(), build_tokenizer(), num_codes=1)
    with pytest.raises(ValueError, match="window=None evicts nothing"):
        probe_ages(adapt(tiny_base(), window=None), ALL, num_codes=1)


def test_facts_at_once(monkeypatch):
    """Of the first text of a batch the last fact is lost, and of all texts nothing else."""
    asked, told = Asked(monkeypatch), []
    options: dict[str, Any] = {"distances": (3, 6), "num_codes": 4, "batch_size": 2}
    found = probe_capacity(model_of(), ALL, code_length=6, **options, progress=told.append)
    assert [(one.num_facts, one.num_evictions) for one in found] == [
        (length, distance) for length in (1, 2, 4, 6) for distance in (3, 6)
    ]
    assert told == [2] * 16
    for index, one in enumerate(found):
        texts = asked.texts[4 * index : 4 * index + 4]
        assert {text.num_answer for text in texts} == {one.num_facts}
        assert (one.remembered, one.whole, one.codes) == (one.num_facts - 0.5, 0.5, 4)
        assert 0 <= one.low < one.remembered < one.high <= one.num_facts
        assert one.nats == pytest.approx(0.5)
    with pytest.raises(ValueError, match="num_codes=1 gives a mean without an interval"):
        probe_capacity(model_of(), ALL, num_codes=1)


def test_facts_of_several_tokens_are_right_when_all_their_tokens_are(monkeypatch):
    split = tokenizer_of(*(letter for word in WORDS for letter in (word[:2], word[2:])))
    pairs = PreTrainedTokenizerFast(tokenizer_object=split.backend_tokenizer)
    encode = pairs.encode
    monkeypatch.setattr(
        pairs,
        "encode",
        lambda text, **more: [token for word in text.split() for token in encode(f"{word[:2]} {word[2:]}", **more)],
    )
    Asked(monkeypatch)
    (one, two) = probe_capacity(model_of(), pairs, code_length=2, num_codes=2, batch_size=2)
    assert (one.remembered, two.remembered) == (0.5, 1.5)


def test_long_codes_are_made_of_all_words(monkeypatch):
    asked = Asked(monkeypatch)
    probe_capacity(model_of(), ALL, code_length=32, num_codes=2, batch_size=2)
    number = {word: ALL.convert_tokens_to_ids(word) for word in (*WORDS, *OTHER_WORDS)}
    by_length = {text.num_answer: text.token_ids[-text.num_answer :] for text in asked.texts}
    assert list(by_length) == [1, 2, 4, 8, 16, 32]
    assert set(by_length[32]) == set(number.values())
    assert set(by_length[16]) & {number[word] for word in OTHER_WORDS}, "short codes are of the same words"
    assert words_for(16) == WORDS
    assert "other words" not in families(code_length=17, kind="words")
