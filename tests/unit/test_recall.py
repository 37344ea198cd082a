"""Passcode episodes: distances are those of the real cache, and the loss is that of the answer alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, TrainerCallback

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients
from support.models import adapt, tiny_base, tiny_model
from thoughtcache.cache.eviction.policies.sliding import sliding_evictions
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings
from thoughtcache.sampler.given import given_text
from thoughtcache.state.attention import read
from thoughtcache.studies.passcode import probe_passcode
from thoughtcache.tasks.recall.episode import RecallEpisode
from thoughtcache.tasks.recall.filler import TEST_FORMS, TRAINING_FORMS, sentences_of
from thoughtcache.tasks.recall.passcode import DIGITS, WORDS, PasscodeTask, evictions_since
from thoughtcache.train.recall import answer_logprobs
from thoughtcache.train.recall_config import RecallConfig
from thoughtcache.train.teach_recall import _Episodes, priced_writes

UNANCHORED = ReplayOptions(anchored=False)


def known_words() -> PreTrainedTokenizerFast:
    """A tokenizer for which every word and every full stop is a token; those of the filler are unknown to it."""
    known = ["[UNK]", "The", "secret", "words", "digits", "are", ".", *WORDS, *DIGITS]
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def task_of(cache: CacheSettings, **options: Any) -> PasscodeTask:
    return PasscodeTask(tokenizer=known_words(), cache=cache, **options)


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
    assert given_text(episode.prompt_ids, episode.token_ids, cache, seed=0).evictions == events


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


def test_a_window_that_is_too_small_is_said_by_the_distance():
    """The code has left before it can be asked for."""
    task = task_of(cache_of(window=4, num_evicted=1))
    assert {task.episode(0, distance).num_evictions for distance in (0, 1)} == {task.episode(0, 0).num_evictions}
    assert task.episode(0, 0).num_evictions > 1
    (row,) = probe_passcode(reasoner(window=4), known_words(), distances=(0,), num_codes=2)
    assert row.num_evictions == task_of(cache_of(window=4, num_evicted=1)).episode(0, 0).num_evictions


def test_words_of_another_number_of_tokens_are_left_out():
    class Pieces(PreTrainedTokenizerFast):
        def encode(self, text: str, **kwargs: Any) -> list[int]:
            number = WORDS.index(text.strip()) if text.strip() in WORDS else 30
            return [number] * (2 if number < 10 else 1)

    tokenizer = Pieces(tokenizer_object=known_words().backend_tokenizer)
    task = PasscodeTask(tokenizer=tokenizer, cache=cache_of())
    assert task._choices() == list(WORDS[:10])
    lengths = {task.episode(seed, 1).num_answer for seed in range(8)}
    assert len(lengths) == 1


def test_words_are_compared_once(monkeypatch):
    """And a task with other words compares those."""
    task, encoded = task_of(cache_of()), list[str]()
    encode = PreTrainedTokenizerFast.encode
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "encode", lambda self, text, **kw: (encoded.append(text), encode(self, text, **kw))[1]
    )
    assert task.is_possible
    assert encoded == [f" {word}" for word in WORDS]
    encoded.clear()
    task.episode(0, 1)
    assert sum(text.strip() in WORDS for text in encoded) == task.length
    assert replace(task, words=WORDS[:5])._choices() == list(WORDS[:5])
    assert task._choices() == list(WORDS)


def test_words_of_a_code_are_all_different():
    """What follows a word that came twice would not be told by the word."""
    task = task_of(cache_of(), length=8)
    assert all(len(set(task.episode(seed, 1).token_ids[-8:])) == 8 for seed in range(20))
    digits = task_of(cache_of(), length=8, kind="digits")
    assert any(len(set(digits.episode(seed, 1).token_ids[-8:])) < 8 for seed in range(20))
    with pytest.raises(ValueError, match="code_length=33 is more than the 17 words"):
        task_of(cache_of(), length=33).episode(0, 1)


def test_sentences_of_the_user_are_shared_out():
    own = tuple(f"{word}." for word in WORDS)
    taught, asked = (task_of(cache_of(window=6), own_sentences=own, is_test=is_test) for is_test in (False, True))
    seen = [set(task.episode(0, 30).token_ids[9:-8]) for task in (taught, asked)]
    numbers = {word: known_words().convert_tokens_to_ids(word) for word in WORDS}
    assert not seen[0] & {numbers[word] for word in WORDS[1::2]}
    assert not seen[1] & {numbers[word] for word in WORDS[0::2]}
    with pytest.raises(ValueError, match="one sentence cannot be shared"):
        task_of(cache_of(), own_sentences=("One.",)).episode(0, 9)


def episodes(*lengths: int) -> list[RecallEpisode]:
    generator = torch.Generator().manual_seed(3)
    return [
        RecallEpisode(
            prompt_ids=[5, 3][: 1 + row % 2],
            token_ids=torch.randint(0, 29, (length,), generator=generator).tolist(),
            num_answer=3,
            num_evictions=1,
            num_between=0,
        )
        for row, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("chunk_tokens", [1, 2, 256])
@pytest.mark.parametrize("memory", ["adapter", "attention"])
@pytest.mark.parametrize("recompute", [True, False])
def test_the_loss_is_that_of_the_answer(memory, recompute, chunk_tokens):
    """Values, hits and gradients are those of the definition, in the order of the episodes."""
    features = {"memory_features": 6} if memory == "attention" else {}
    model: Any = tiny_model(window=5, evict_fraction=0.4, memory=memory, **features)
    cache = model.peft_config["default"].resolve_window(None)
    texts = episodes(9, 16, 12)
    options = ReplayOptions(anchored=False, recompute=recompute, chunk_tokens=chunk_tokens)
    logprobs, hits = answer_logprobs(model, model, texts, cache, options)
    rollouts = [given_text(episode.prompt_ids, episode.token_ids, cache, seed=0) for episode in texts]
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


@pytest.mark.parametrize("chunk_tokens", [2, 256])
@pytest.mark.parametrize("write", ["linear", "delta"])
@pytest.mark.parametrize("recompute", [True, False])
def test_the_price_of_writing_is_in_the_gradient(write, recompute, chunk_tokens, monkeypatch):
    """That of the loss plus price times the strengths of all tokens, in the mean over rows, heads and layers."""
    model: Any = tiny_model(window=5, evict_fraction=0.4, memory="attention", memory_features=6, memory_write=write)
    cache = model.peft_config["default"].resolve_window(None)
    texts = episodes(12, 12, 11)  # the same evictions in all rows
    options = ReplayOptions(anchored=False, recompute=recompute, chunk_tokens=chunk_tokens)

    def loss() -> torch.Tensor:
        return answer_logprobs(model, model, texts, cache, options)[0].sum()

    free = gradients(model, loss)
    with priced_writes(model, 0.3):
        paid = gradients(model, loss)
    assert_gradients_match(gradients(model, loss), free)

    strengths: list[torch.Tensor] = []
    monkeypatch.setattr(read, "priced", lambda strength, price: strengths.append(strength) or strength)

    def explicit() -> torch.Tensor:
        strengths.clear()
        whole = answer_logprobs(model, model, texts, cache, ReplayOptions(anchored=False, recompute=False))[0].sum()
        assert len(strengths) == 2 * 3, "two layers, three evictions"
        written = sum(strength.mean(dim=(0, 1)).sum() for strength in strengths) / 2
        return whole + 0.3 * written

    assert_gradients_match(paid, gradients(model, explicit))
    assert any(not torch.equal(paid[name], free[name]) for name in free)


def test_hits_are_what_greedy_decoding_says():
    model: Any = tiny_model(window=5, evict_fraction=0.4, memory="attention", memory_features=6)
    cache = model.peft_config["default"].resolve_window(None)
    (said,) = tc.rollout(model, [[3, 1]], max_new_tokens=14, temperature=0.0, ignore_eos=True)
    right = RecallEpisode(prompt_ids=[3, 1], token_ids=said.token_ids, num_answer=4, num_evictions=1, num_between=0)
    wrong_ids = [*said.token_ids[:-1], (said.token_ids[-1] + 1) % 29]
    wrong = RecallEpisode(prompt_ids=[3, 1], token_ids=wrong_ids, num_answer=4, num_evictions=1, num_between=0)
    with torch.no_grad():
        _, hits = answer_logprobs(model, model, [wrong, right], cache, UNANCHORED)
    assert hits.tolist() == [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("eviction", ["random", "h2o"])
def test_policies_that_choose_choose_first(eviction):
    """What they evict of a given text is what they would have evicted of their own."""
    model: Any = tiny_model(window=8, evict_fraction=0.25, eviction=eviction)
    cache = model.peft_config["default"].resolve_window(None)
    (said,) = tc.rollout(model, [[3, 1]], max_new_tokens=20, temperature=0.0, ignore_eos=True, seed=0)
    episode = RecallEpisode(prompt_ids=[3, 1], token_ids=said.token_ids, num_answer=4, num_evictions=1, num_between=0)
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
            [one, RecallEpisode(prompt_ids=[1], token_ids=two.token_ids, num_answer=2, num_evictions=0, num_between=0)],
            cache,
            UNANCHORED,
        )


def small(folder: Path, **changes: Any) -> RecallConfig:
    settings = {
        "num_steps": 4,
        "batch_size": 2,
        "warmup_steps": 1,
        "code_length": 2,
        "max_evictions": 4,
        "log_every": 1,
    }
    return RecallConfig(**{"output_dir": str(folder), **settings, **changes})


def reasoner(**options: Any) -> Any:
    settings = {"window": 8, "evict_fraction": 0.25, "memory": "attention", "memory_features": 6, **options}
    return adapt(tiny_base(vocab_size=64, dtype=torch.float32), randomise=False, **settings)


def test_teaching_changes_the_memory_alone(tmp_path):
    model = reasoner()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    result = tc.teach_recall(model, known_words(), small(tmp_path))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "lora_thought_memory" in name}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == wanted
    assert len([entry for entry in result.history if "loss" in entry]) == 4
    tc.teach_recall(model, known_words(), small(tmp_path, trains="adapter"))
    assert any("lora_B" in name and parameter.count_nonzero() for name, parameter in model.named_parameters())


@pytest.mark.parametrize(("cost", "expected"), [(None, 0.05), (0.0, 0.0), (0.3, 0.3)])
def test_writing_has_its_price_while_it_is_taught(cost, expected, tmp_path, monkeypatch):
    model, seen = reasoner(), set()
    layers = find_tuner(model).memory_weights()

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.update(layer.write_price for layer in layers)

    tc.teach_recall(model, known_words(), small(tmp_path, write_cost=cost), callbacks=[Watch()])
    assert seen == {expected / len(layers)}
    assert {layer.write_price for layer in layers} == {0.0}


def test_going_on_ends_where_one_run_does(tmp_path):
    """The episodes of a step are those of its number, also after a stop."""
    whole, parts = reasoner(), reasoner()
    growing = {"growth_steps": 4, "save_every": 2}
    tc.teach_recall(whole, known_words(), small(tmp_path / "whole", **growing))

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    tc.teach_recall(parts, known_words(), small(tmp_path / "parts", **growing), callbacks=[Stop()])
    torch.manual_seed(99)
    tc.teach_recall(parts, known_words(), small(tmp_path / "parts", resume=True, **growing))
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_distances_grow():
    config = small(Path("nowhere"), min_evictions=2, max_evictions=10, growth_steps=4)
    assert [config.longest(step) for step in range(6)] == [2, 4, 6, 8, 10, 10]


def test_short_and_long_distances_come_equally_often():
    """By their logarithm: of 1 to 14, as many are 1 or 2 as 3 to 6, and as 7 to 14."""
    cache = cache_of()
    config = small(Path("nowhere"), num_steps=3000, min_evictions=1, max_evictions=14)
    drawn = [_Episodes(task_of(cache), config, 1).distance(step) for step in range(3000)]
    assert set(drawn) == set(range(1, 15))
    shares = [sum(low <= one <= high for one in drawn) / 3000 for low, high in ((1, 2), (3, 6), (7, 14))]
    expected = [math.log(4 / 2), math.log(8 / 4), math.log(16 / 8)]
    assert shares == pytest.approx([one / math.log(16 / 2) for one in expected], abs=0.03)
    lengths = _Episodes(task_of(cache), small(Path("nowhere"), num_steps=300, code_length=5, min_code_length=2), 1)
    assert {lengths.code_length(step) for step in range(300)} == {2, 3, 4, 5}
    assert {lengths[index].num_answer for index in (6, 7)} == {lengths.code_length(3)}  # two texts per step
    behind = _Episodes(task_of(cache), small(Path("nowhere"), num_steps=300, max_before=6), 1)
    assert {behind.before(step) for step in range(300)} == set(range(7))
    alone = task_of(cache, length=behind.config.code_length)
    found, alone = behind[5], alone.episode(f"training {behind.config.seed} 5", behind.distance(2))
    size = cache.num_evicted * behind.before(2)  # two texts per step
    assert found.token_ids[size:] == alone.token_ids
    at_once = small(Path("nowhere"), min_evictions=0, max_evictions=1)
    assert {_Episodes(task_of(cache), at_once, 1).before(step) for step in range(30)} == {0, 1}  # as many evictions
    first = small(Path("nowhere"), max_before=0)
    assert {_Episodes(task_of(cache), first, 1).before(step) for step in range(30)} == {0}
    assert {_Episodes(task_of(cache), at_once, 1).distance(step) for step in range(30)} == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_before": -1}, "max_before must be at least 0, got -1"),
        ({"min_evictions": 9}, "min_evictions must be between 0 and max_evictions=4, got 9"),
        ({"min_code_length": 9}, "min_code_length must be between 1 and code_length=[0-9], got 9"),
        ({"kind": "letters"}, "kind='letters'"),
        ({"trains": "all"}, "trains='all'"),
        ({"growth_steps": -1}, "growth_steps must be at least 0, got -1"),
        ({"num_steps": 0}, "num_steps"),
        ({"write_cost": -0.1}, "write_cost must be at least 0, got -0.1"),
        ({"write_cost": float("nan")}, "write_cost must be at least 0, got nan"),
    ],
)
def test_settings_without_meaning_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **changes)


def test_what_cannot_be_taught_is_refused(tmp_path):
    lora = adapt(tiny_base(), initial_state="identity", absorb=False, num_global_tokens=3)
    with pytest.raises(ValueError, match="plain LoRA and has no memory to train; use trains='adapter'"):
        tc.teach_recall(lora, known_words(), small(tmp_path))
    paper = adapt(tiny_base(vocab_size=64), randomise=False)
    with pytest.raises(ValueError, match="would train nothing: under memory='adapter'"):
        tc.teach_recall(paper, known_words(), small(tmp_path))
    with pytest.raises(ValueError, match=r"write_cost=0\.1 changes nothing under memory='adapter'"):
        tc.teach_recall(paper, known_words(), small(tmp_path, trains="adapter", write_cost=0.1))
    with pytest.raises(ValueError, match="window='prompt' is not known"):
        tc.teach_recall(reasoner(window="prompt"), known_words(), small(tmp_path))


def test_a_probe_counts_what_is_right(monkeypatch):
    """Numbers of the table, by hand, from known hits."""
    model = reasoner()
    seen: list[int] = []

    def answers(model: Any, adapted: Any, texts: Any, cache: Any, options: Any, *, seed: int) -> Any:
        seen.extend(text.num_evictions for text in texts)
        hits = torch.ones(len(texts), 2)
        hits[0, 1] = 0.0
        return torch.full((len(texts), 2), -0.5), hits

    monkeypatch.setattr("thoughtcache.studies.passcode.answer_logprobs", answers)
    told: list[int] = []
    near, far = probe_passcode(
        model, known_words(), distances=(4, 6), num_codes=5, code_length=2, batch_size=3, progress=told.append
    )
    assert seen == [4] * 5 + [6] * 5
    assert told == [3, 2, 3, 2]
    assert (near.num_evictions, near.codes, near.right_codes, near.tokens, near.right_tokens) == (4, 5, 3, 10, 8)
    assert near.nats == pytest.approx(0.5)
    assert near.low < 0.6 < near.high
    assert far.num_thoughts > near.num_thoughts
    with pytest.raises(ValueError, match="at least 1, got 0 and 16"):
        probe_passcode(model, known_words(), num_codes=0)
