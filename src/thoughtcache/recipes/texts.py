"""Texts that commands read or let the base write: pieces of a file, token ids of a file, and answers to questions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.planning.teacher import UNPLANNED
from thoughtcache.recipes.prompts import encode_examples
from thoughtcache.recipes.run.folder import PhaseResult, RunFolder
from thoughtcache.recipes.run.settings import data_identity
from thoughtcache.recipes.teacher_samples import kept_samples
from thoughtcache.records import Rollout
from thoughtcache.report.progress import finished_rows, progress_bar
from thoughtcache.tasks.data.bad_rows import Report
from thoughtcache.tasks.data.datasets import load_prompts
from thoughtcache.train.distill import sample_teacher
from thoughtcache.train.distill_config import DistillConfig

TEXTS = "texts"
"""Name of the phase in which the base answers, and of the file of its answers."""
Text = tuple[list[int], list[int]]
"""Token ids of a prompt and of the thoughts after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSource:
    """What texts are made of.

    Attributes:
        texts: whole texts; empty where the base answers.
        prompts: token ids of questions; empty where texts are given.
    """

    texts: list[Text]
    prompts: list[list[int]]

    @property
    def digest(self) -> str:
        """A digest of the tokens."""
        return data_identity(self.texts or self.prompts)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt) for prompt in self.prompts or [prompt for prompt, _ in self.texts])


def encoded_file(file: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of running text, without special tokens."""
    ids: list[int] = tokenizer.encode(Path(file).read_text(encoding="utf-8"), add_special_tokens=False)
    return ids


def pieces_of(ids: list[int], prompt_tokens: int, length: int, most: int) -> list[Text]:
    """Whole pieces of a text, one after the other: pairs of a prompt and thoughts."""
    size = prompt_tokens + length
    starts = range(0, len(ids) - size + 1, size)[:most]
    return [(ids[start : start + prompt_tokens], ids[start + prompt_tokens : start + size]) for start in starts]


@runtime_checkable
class AsksQuestions(Protocol):
    """The settings of a run whose texts may be answers of the base."""

    @property
    def dataset(self) -> str | None:
        """File, folder or hub id with questions."""

    @property
    def split(self) -> str:
        """Split of a hub data set."""

    @property
    def prompt_column(self) -> str | None:
        """Column with the question."""

    @property
    def instruction(self) -> str:
        """Text after each question."""

    @property
    def num_texts(self) -> int:
        """First rows that are read."""


def questions_of(run: AsksQuestions, tokenizer: PreTrainedTokenizerBase, report: Report) -> list[list[int]]:
    """Token ids of the questions of a run.

    Args:
        run: its settings, with a data set.
        tokenizer: tokenizer of the model.
        report: gets sentences about what was dropped.
    """
    assert run.dataset is not None
    examples = load_prompts(
        run.dataset,
        split=run.split,
        prompt_column=run.prompt_column,
        limit=run.num_texts,
        need_answers=False,
        report=report,
    )
    instruction = run.instruction or None
    return encode_examples(tokenizer, examples, instruction=instruction, bad_rows="refuse", report=report)[1]


def base_answers(
    model: PeftModel,
    prompts: list[list[int]],
    folder: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int = UNPLANNED,
    cache: dict[str, Any] | None = None,
) -> list[Rollout]:
    """What the base answers at temperature 1, one answer per question.

    Args:
        model: the adapted model.
        prompts: token ids of the questions.
        folder: where the answers are kept, as a phase of the run.
        tokenizer: tokenizer of the model.
        console: where progress goes.
        max_new_tokens: bound on an answer.
        seed: seeds the sampling.
        batch_size: answers that it samples at once.
        cache: the cache under which it does, see `DistillConfig.teacher_cache`; None for the full one.
    """
    settings = DistillConfig(
        output_dir="", max_new_tokens=max_new_tokens, sample_batch_size=batch_size, teacher_cache=cache, seed=seed
    )

    def draw(start: int, stop: int) -> list[Rollout]:
        with progress_bar("answers of the base", stop - start, console=console) as advance:
            return sample_teacher(
                model, prompts[start:stop], settings, tokenizer=tokenizer, on_event=finished_rows(advance)
            )

    file = folder.samples_file(TEXTS)

    def sample(path: Path, resume: bool) -> PhaseResult:
        return {"answers": len(kept_samples(file, len(prompts), draw))}

    folder.phase(TEXTS, sample)
    return kept_samples(file, len(prompts), draw)


def read_tokens(file: str) -> list[Text]:
    """Pairs of a prompt and thoughts from a file of JSON lines with token ids under "prompt" and "thought".

    Raises:
        ValueError: if a line is none of these.
    """
    found = []
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            found.append((_ids(row["prompt"]), _ids(row["thought"])))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'line {number} of {file} is no text in token ids ({error}); write {{"prompt": [1, 2], '
                '"thought": [3, 4]}, one text per line'
            ) from error
    return found


def _ids(value: object) -> list[int]:
    if not isinstance(value, list) or not value or {type(one) for one in value} != {int}:
        raise TypeError("a list of integers is needed, at least one")
    return value
