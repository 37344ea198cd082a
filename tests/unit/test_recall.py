"""Passcode episodes: distances are those of the real cache, and the loss is that of the answer alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients
from support.models import tiny_model
from thoughtcache.cache.eviction.sliding import sliding_evictions
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.records import CacheSettings
from thoughtcache.tasks.recall.episode import RecallEpisode
from thoughtcache.tasks.recall.filler import TEST_FORMS, TRAINING_FORMS, sentences_of
from thoughtcache.tasks.recall.passcode import DIGITS, WORDS, PasscodeTask, evictions_since
from thoughtcache.train.recall import answer_logprobs, given_text

UNANCHORED = ReplayOptions(anchored=False)


def task_of(cache: CacheSettings, **options: Any) -> PasscodeTask:
    """With a tokenizer for which every word and every full stop is a token; those of the filler are unknown to it."""
    known = ["[UNK]", "The", "secret", "words", "digits", "are", ".", *WORDS, *DIGITS]
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PasscodeTask(tokenizer=PreTrainedTokenizerFast(tokenizer_object=words), cache=cache, **options)


def cache_of(window: int | None = 8, num_evicted: int | None = 2, eviction: str = "sliding") -> CacheSettings:
    return CacheSettings(window=window, num_evicted=num_evicted, eviction=eviction)


def resident(asked: int, window: int, num_evicted: int) -> tuple[list[int], int]:
    """Thoughts that the token `asked` is predicted from, by going through them; and how often something left."""
    inside: list[int] = []
    events = 0
    for thought in range(asked):
        if len(inside) == window:
            inside = inside[num_evicted:]
            events += 1
        inside.append(thought)
    return inside, events


@pytest.mark.parametrize(("window", "num_evicted"), [(4, 1), (5, 2), (8, 8), (9, 3)])
def test_distances_are_those_of_a_window(window, num_evicted):
    for thought in range(9):
        gone_at = None
        for asked in range(thought + 1, 40):
            inside, events = resident(asked, window, num_evicted)
            if thought not in inside and gone_at is None:
                gone_at = events
            expected = 0 if gone_at is None else events - gone_at + 1
            assert evictions_since(thought, asked, window, num_evicted) == expected
        assert gone_at is not None


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("kind", ["words", "digits"])
@pytest.mark.parametrize("distance", [0, 1, 2, 7])
def test_episodes_ask_after_so_many_evictions(distance, kind, length):
    """The code stands at the beginning and at the end, and nowhere inside the window that the question sees."""
    cache = cache_of(window=12, num_evicted=3)
    task = task_of(cache, length=length, kind=kind)
    episode = task.episode(5, distance)
    assert episode == task.episode(5, distance)
    assert episode.token_ids != task.episode(6, distance).token_ids
    code = episode.token_ids[-episode.num_answer :]
    told = task.tokenizer.encode(f" The secret {kind} are", add_special_tokens=False)
    assert episode.token_ids[len(told) :][: len(code)] == code
    assert episode.num_evictions >= distance
    asked = len(episode.token_ids) - len(code)
    last_token = len(told) + len(code) - 1
    inside, _ = resident(asked, 12, 3)
    assert (last_token in inside) == (episode.num_evictions == 0)
    if distance > 3:
        assert episode.num_evictions == distance
    events = sliding_evictions(len(episode.token_ids) - 1, 12, 3)
    assert given_text(episode, cache, seed=0).evictions == events


def test_training_and_probe_share_no_sentence():
    assert not set(TRAINING_FORMS) & set(TEST_FORMS)


def test_own_sentences(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("One is here. Two?  Three!\nFour")
    assert sentences_of(file) == ["One is here.", "Two?", "Three!", "Four"]
    file.write_text("  \n")
    with pytest.raises(ValueError, match="holds no sentence"):
        sentences_of(file)


def test_a_full_cache_has_no_distances():
    task = task_of(cache_of(None, None))
    with pytest.raises(ValueError, match="window=None evicts nothing"):
        task.episode(0, 3)


def episodes(*lengths: int) -> list[RecallEpisode]:
    generator = torch.Generator().manual_seed(3)
    return [
        RecallEpisode(
            prompt_ids=[5, 3][: 1 + row % 2],
            token_ids=torch.randint(0, 29, (length,), generator=generator).tolist(),
            num_answer=3,
            num_evictions=1,
        )
        for row, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("chunk_tokens", [1, 2, 256])
@pytest.mark.parametrize("memory", ["adapter", "attention"])
@pytest.mark.parametrize("recompute", [True, False])
def test_the_loss_is_that_of_the_answer(memory, recompute, chunk_tokens):
    """Values, hits and gradients are those of the definition, in the order of the episodes."""
    model: Any = tiny_model(window=5, evict_fraction=0.4, memory=memory, memory_features=6)
    cache = model.peft_config["default"].resolve_window(None)
    texts = episodes(9, 16, 12)
    options = ReplayOptions(anchored=False, recompute=recompute, chunk_tokens=chunk_tokens)
    logprobs, hits = answer_logprobs(model, model, texts, cache, options)
    rollouts = [given_text(episode, cache, seed=0) for episode in texts]
    expected = tc.naive_logprobs(model, rollouts)
    for row, episode in enumerate(texts):
        length = len(episode.token_ids)
        assert_close(logprobs[row], expected.logprobs[row, length - 3 : length])
    assert hits.unique().tolist() in ([0.0], [0.0, 1.0])

    def naive_loss() -> torch.Tensor:
        found = tc.naive_logprobs(model, rollouts).logprobs
        return sum(found[row, len(e.token_ids) - 3 : len(e.token_ids)].sum() * (row + 1) for row, e in enumerate(texts))

    def loss() -> torch.Tensor:
        found, _ = answer_logprobs(model, model, texts, cache, options)
        return (found.sum(dim=1) * torch.tensor([1.0, 2.0, 3.0])).sum()

    assert_gradients_match(gradients(model, loss), gradients(model, naive_loss))


def test_hits_are_what_greedy_decoding_says():
    model: Any = tiny_model(window=5, evict_fraction=0.4, memory="attention", memory_features=6)
    cache = model.peft_config["default"].resolve_window(None)
    (said,) = tc.rollout(model, [[3, 1]], max_new_tokens=14, temperature=0.0, ignore_eos=True)
    right = RecallEpisode(prompt_ids=[3, 1], token_ids=said.token_ids, num_answer=4, num_evictions=1)
    wrong_ids = [*said.token_ids[:-1], (said.token_ids[-1] + 1) % 29]
    wrong = RecallEpisode(prompt_ids=[3, 1], token_ids=wrong_ids, num_answer=4, num_evictions=1)
    with torch.no_grad():
        _, hits = answer_logprobs(model, model, [wrong, right], cache, UNANCHORED)
    assert hits.tolist() == [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("eviction", ["random", "h2o"])
def test_policies_that_choose_choose_first(eviction):
    """What they evict of a given text is what they would have evicted of their own."""
    model: Any = tiny_model(window=8, evict_fraction=0.25, eviction=eviction)
    cache = model.peft_config["default"].resolve_window(None)
    (said,) = tc.rollout(model, [[3, 1]], max_new_tokens=20, temperature=0.0, ignore_eos=True, seed=0)
    episode = RecallEpisode(prompt_ids=[3, 1], token_ids=said.token_ids, num_answer=4, num_evictions=1)
    with torch.no_grad():
        logprobs, _ = answer_logprobs(model, model, [episode], cache, UNANCHORED)
    assert_close(logprobs[0], said.logprobs[-4:])


def test_answers_of_a_batch_are_equally_long():
    model: Any = tiny_model()
    cache = model.peft_config["default"].resolve_window(None)
    one, two = episodes(9, 9)
    with pytest.raises(ValueError, match=r"equally many tokens, got \[2, 3\]"):
        answer_logprobs(
            model,
            model,
            [one, RecallEpisode(prompt_ids=[1], token_ids=two.token_ids, num_answer=2, num_evictions=0)],
            cache,
            UNANCHORED,
        )
