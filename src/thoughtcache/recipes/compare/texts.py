"""The texts of a comparison: pairs of a prompt and equally many thoughts."""

from __future__ import annotations

from typing import TypeVar

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.token_ids import check_prompts
from thoughtcache.recipes.compare.config import CompareRun
from thoughtcache.recipes.run.folder import RunFolder
from thoughtcache.recipes.texts import (
    Text,
    TextSource,
    base_answers,
    encoded_file,
    pieces_of,
    questions_of,
    read_tokens,
)
from thoughtcache.report.progress import plain_line
from thoughtcache.tasks.data.bad_rows import Report

T = TypeVar("T")


def read_source(run: CompareRun, tokenizer: PreTrainedTokenizerBase, report: Report) -> TextSource:
    """Read the file, or the questions.

    Args:
        run: the settings.
        tokenizer: tokenizer of the model.
        report: gets sentences about what was dropped.

    Raises:
        ValueError: if there are fewer than two.
    """
    if run.dataset is not None:
        prompts = questions_of(run, tokenizer, report)
        return TextSource(texts=[], prompts=_at_least_two(prompts, run.dataset, "questions"))
    if run.text is not None:
        texts = pieces_of(encoded_file(run.text, tokenizer), run.prompt_tokens, run.length, run.num_texts)
        what = f"pieces of {run.prompt_tokens + run.length} tokens"
        return TextSource(texts=_at_least_two(texts, run.text, what), prompts=[])
    assert run.tokens is not None
    texts = _cut(read_tokens(run.tokens), run.length)[: run.num_texts]
    return TextSource(texts=_at_least_two(texts, run.tokens, f"texts of length={run.length}"), prompts=[])


def texts_of(
    source: TextSource,
    run: CompareRun,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: RunFolder,
    console: Console,
) -> list[Text]:
    """The texts; answers are sampled once and kept in the folder.

    Raises:
        ValueError: if the model has not their tokens, or fewer than two answers are long enough.
    """
    texts = source.texts
    if not texts:
        answers = base_answers(
            model, source.prompts, folder, tokenizer, console, max_new_tokens=run.length, seed=run.seed
        )
        texts = _cut([(list(row.prompt_ids), list(row.token_ids)) for row in answers], run.length)
        _at_least_two(texts, str(run.dataset), f"answers of length={run.length}")
        if len(texts) < len(answers):
            plain_line(console, f"{len(answers) - len(texts)} of {len(answers)} answers are shorter and left out")
    check_prompts([ids for text in texts for ids in text], open_policy(model))
    return texts


def _cut(texts: list[Text], length: int) -> list[Text]:
    return [(prompt, thoughts[:length]) for prompt, thoughts in texts if len(thoughts) >= length]


def _at_least_two(found: list[T], source: str, what: str) -> list[T]:
    if len(found) < 2:
        raise ValueError(
            f"{source} has {len(found)} {what}, and two are the least for an interval; give more, or a smaller length"
        )
    return found
