"""Where sequences and prompts end: the same in every command, sampler and trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import thoughtcache as tc
from support.grpo import BOS, EOS, base_with_eos, even_words, make_trainer, prompts, quick_arguments, word_tokenizer
from support.models import adapt
from thoughtcache.ends import prompt_token_ids, stop_token_ids
from thoughtcache.evaluation.accuracy import exact_match_accuracy
from thoughtcache.recipes import grpo_phase, real_model
from thoughtcache.recipes.generate import asking as asking_module
from thoughtcache.recipes.generate.answer import answer
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.tasks.chat import encode_prompt
from thoughtcache.tasks.embedded import reasoner
from thoughtcache.tasks.embedded.problem import Problem
from thoughtcache.tasks.example import Example
from thoughtcache.tasks.saved_prompt import save_prompt_format, saved_instruction
from thoughtcache.train.distill import distill, sample_teacher
from thoughtcache.train.distill_config import DistillConfig

END_OF_TURN = 5
"""What the model declares here; the tokenizer's is `EOS`."""
TEMPLATE = "{% for m in messages %}w3 {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w4{% endif %}"


def appending(single: str = "<bos> $A <eos>") -> PreTrainedTokenizerFast:
    """A tokenizer of words that adds special tokens to a text."""
    tokenizer = word_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def with_template() -> PreTrainedTokenizerFast:
    tokenizer = appending()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZERS = {
    "plain": word_tokenizer,
    "bos": lambda: appending("<bos> $A"),
    "appends_eos": appending,
    "chat_template": with_template,
}


@pytest.mark.parametrize(
    ("declared", "own", "expected"),
    [
        (None, None, []),
        (7, None, [7]),
        (None, 2, [2]),
        (7, 2, [2, 7]),
        ([7, 2, 9], 2, [2, 7, 9]),
        ([7, 7], None, [7]),
        (0, 0, [0]),
    ],
)
def test_a_sequence_ends_with_the_tokens_of_model_and_tokenizer(
    declared: int | list[int] | None, own: int | None, expected: list[int]
) -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None if own is None else tokenizer.convert_ids_to_tokens(own)
    assert stop_token_ids(declared, tokenizer) == expected


def test_without_a_tokenizer_only_the_tokens_of_the_model_are_known() -> None:
    assert stop_token_ids([7, 2, 7], None) == [7, 2]
    assert stop_token_ids(None, None) == []


@pytest.mark.parametrize(
    ("single", "text", "expected"),
    [
        ("$A", "w3 w4", [3, 4]),
        ("<bos> $A", "w3", [BOS, 3]),
        ("$A <eos>", "w3 w4", [3, 4]),
        ("<bos> $A <eos>", "w3 w4", [BOS, 3, 4]),
        ("<bos> $A <eos> <eos>", "w3", [BOS, 3]),
        ("<bos> $A <eos>", "w3 <eos>", [BOS, 3, EOS]),  # written, not appended
        ("<bos> $A", "w3 <eos> <eos>", [BOS, 3, EOS, EOS]),
        ("<bos> $A <eos>", "", [BOS]),
    ],
)
def test_a_prompt_never_ends_with_an_end_that_the_tokenizer_appends(
    single: str, text: str, expected: list[int]
) -> None:
    assert prompt_token_ids(appending(single), text) == expected


def test_a_tokenizer_without_an_end_appends_none() -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    assert prompt_token_ids(tokenizer, "w3 w4") == [3, 4]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> tc.ThoughtGRPOTrainer:
    return make_trainer(adapt(base_with_eos(dtype=torch.float32)), tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("instruction", ["", "w7 w8"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_has_the_same_tokens_in_both_stages_of_train_and_in_generate(
    name: str, instruction: str, trainer: tc.ThoughtGRPOTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TOKENIZERS[name]()
    messages = [{"role": "user", "content": "w9 w6"}]
    distilled = encode_prompt(tokenizer, messages, instruction=instruction or None)
    row = grpo_phase._row(Example(prompt=messages, answer="1", identifier="0"), tokenizer, instruction)
    monkeypatch.setattr(trainer, "processing_class", tokenizer)
    monkeypatch.setattr(trainer, "_tokenizer", tokenizer)
    (learned,), _, _ = trainer._tokenize_prompts([row["prompt"]])
    asked: list[list[int]] = []
    original = asking_module.rollout

    def spy(model: Any, prompt_ids: list[list[int]], **options: Any) -> Any:
        asked.extend(prompt_ids)
        return original(model, prompt_ids, **options)

    monkeypatch.setattr(asking_module, "rollout", spy)
    _save(tmp_path, tokenizer, instruction)
    _ask(tmp_path)
    assert distilled == learned == asked[0]
    assert distilled[-1] != EOS
    assert (7 in distilled) is bool(instruction)


def _save(folder: Path, tokenizer: PreTrainedTokenizerFast, instruction: str) -> None:
    """What `thoughtcache train` leaves: a base model whose tokenizer differs from the adapter's, and the adapter."""
    base = base_with_eos(dtype=torch.float32)
    base.generation_config.eos_token_id = END_OF_TURN
    base.save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    adapt(base).save_pretrained(folder / "adapter")
    run = RunConfig(model=str(folder / "model"), dataset="questions", instruction=instruction)
    real_model._save_format(folder / "adapter", tokenizer, run)


def _ask(folder: Path, **options: Any) -> str:
    settings = {"max_new_tokens": 6, "temperature": 0.0, "dtype": "float32", **options}
    return answer(prompt="w9 w6", model=str(folder / "model"), adapter=str(folder / "adapter"), **settings)


def test_a_damaged_prompt_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    assert saved_instruction(tmp_path) is None
    save_prompt_format(tmp_path, instruction="w7")
    assert saved_instruction(tmp_path) == "w7"
    (tmp_path / "thoughtcache_prompt.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is damaged .*delete it to ask without instruction"):
        saved_instruction(tmp_path)


def _two_ends() -> Any:
    """A model that declares one end; its tokenizer has another one."""
    base = base_with_eos(dtype=torch.float32)
    base.generation_config.eos_token_id = END_OF_TURN
    return adapt(base)


def _ends_early(rows: list[tc.Rollout], stops: set[int]) -> bool:
    """Whether no row goes on after a stop token, and some row ends with each."""
    assert not any(token in stops for row in rows for token in row.token_ids[:-1])
    return {row.token_ids[-1] for row in rows} >= stops


def test_teacher_rollout_and_trainer_end_with_the_same_tokens(tmp_path: Path) -> None:
    model, tokenizer = _two_ends(), word_tokenizer()
    questions = [[3 + row % 20] for row in range(64)]
    config = DistillConfig(output_dir=str(tmp_path), max_new_tokens=40)
    taught = sample_teacher(model, questions, config, tokenizer=tokenizer)
    assert _ends_early(taught, {EOS, END_OF_TURN})
    assert _ends_early(tc.rollout(model, questions, max_new_tokens=40, tokenizer=tokenizer), {EOS, END_OF_TURN})
    alone = tc.rollout(model, questions, max_new_tokens=40)
    assert any(EOS in row.token_ids[:-1] for row in alone), "the tokenizer's end makes no difference here"
    ignored = tc.rollout(model, questions, max_new_tokens=40, tokenizer=tokenizer, ignore_eos=True)
    assert {len(row.token_ids) for row in ignored} == {40}
    chosen = tc.rollout(model, questions, max_new_tokens=40, tokenizer=tokenizer, stop_ids=[7])
    assert any(EOS in row.token_ids[:-1] for row in chosen)
    assert make_trainer(model, tmp_path).eos_token_ids == [EOS, END_OF_TURN]


def test_distillation_draws_its_samples_to_the_same_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thoughtcache.train import distill as module

    seen: list[Any] = []
    original = module.sample_teacher

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(options["tokenizer"])
        return original(*arguments, **options)

    monkeypatch.setattr(module, "sample_teacher", spy)
    tokenizer = word_tokenizer()
    config = DistillConfig(output_dir=str(tmp_path), num_steps=1, batch_size=1, warmup_steps=0, max_new_tokens=7)
    distill(_two_ends(), [[3, 4]], config, tokenizer=tokenizer)
    assert seen == [tokenizer]


def test_evaluation_ends_with_the_tokenizers_token_too() -> None:
    tokenizer = reasoner.build_tokenizer()
    base = base_with_eos(dtype=torch.float32, vocab_size=len(reasoner.VOCABULARY))
    base.generation_config.eos_token_id = END_OF_TURN
    model = adapt(base)
    problems = [Problem(prompt=f"{row}+{row}=", trace="", answer="0") for row in range(30)]
    found = exact_match_accuracy(model, tokenizer, problems, max_new_tokens=30, temperature=1.0)
    base.generation_config.eos_token_id = [END_OF_TURN, tokenizer.eos_token_id]
    assert (
        found.mean_tokens
        == exact_match_accuracy(model, tokenizer, problems, max_new_tokens=30, temperature=1.0).mean_tokens
    )


@pytest.mark.parametrize("missing", ["pad_token", "eos_token"])
def test_a_tokenizer_without_one_of_its_tokens_trains(missing: str, tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    setattr(tokenizer, missing, None)
    trainer = _trainer(tokenizer, tmp_path)
    assert trainer.eos_token_ids == [EOS]
    trainer.train()


def test_a_run_without_padding_or_without_any_end_is_refused(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"neither a padding token nor an end-of-sequence .*; set tokenizer\.pad"):
        _trainer(tokenizer, tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"neither the tokenizer nor the model names an end-of-sequence token"):
        _trainer(tokenizer, tmp_path, eos_token_id=None)


def _trainer(tokenizer: PreTrainedTokenizerFast, folder: Path, **base: Any) -> tc.ThoughtGRPOTrainer:
    return tc.ThoughtGRPOTrainer(
        adapt(base_with_eos(dtype=torch.float32, **base)),
        even_words,
        tc.ThoughtGRPOConfig(**quick_arguments(folder, max_steps=1)),
        train_dataset=prompts(),
        processing_class=tokenizer,
    )
