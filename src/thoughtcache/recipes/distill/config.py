"""Settings of `thoughtcache distill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thoughtcache.adapter.support import DTYPES
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.learner.options import AUTO, Auto, count_or_auto
from thoughtcache.policy.other_cache import check_teacher_cache


@dataclass(frozen=True, kw_only=True)
class DistillRun:
    """Everything of a distillation that is not the adapter. Each field is an option of `thoughtcache distill`.

    Attributes:
        model: transformers folder or hub id.
        recipe: name of a recipe, or a TOML file; None for "memory" where the adapter has a memory in attention space,
            and "logits" where it has none.
        text: file with running text, which is cut into pieces.
        dataset: file, folder or hub id with questions that the base answers; instead of `text`.
        split: split of a hub data set.
        prompt_column: column with the question.
        instruction: text after each question.
        adapter: folder of a trained adapter to start from.
        output_dir: run folder: checkpoints, adapter, results.json, distill.png.
        dtype: dtype of the base model.
        num_texts: texts, at most; the first `held_out` ones are measured and never trained on.
        held_out: see `num_texts`.
        prompt_tokens: with `text`, first tokens of a piece, which stay in the cache.
        max_new_tokens: thoughts of a text.
        teacher_batch_size: with `dataset`, answers that the base samples at once; an answer does not depend on the
            others beside it. "auto": as many as keep to 60 % of the device (`planning/teacher.py`).
        teacher_cache: with `dataset`, the cache under which it samples them, as settings of `ThoughtConfig` with a
            window; None for the full one. What is learned from are the distributions of the full cache in any case.
        force: sample even if the planner says that it does not fit.
        baselines: measure the base beside it, under windows with as many slots more as the states have numbers: the
            newest ones, and those that `h2o` chooses.
        seed: seed of all random numbers of the run.
        save_every: optimiser steps between checkpoints.
        resume: go on in `output_dir` where the last run stopped.
        overwrite: start anew in an `output_dir` that holds another run.

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    model: str
    recipe: str | None = None
    text: str | None = None
    dataset: str | None = None
    split: str = "train"
    prompt_column: str | None = None
    instruction: str = ""
    adapter: str | None = None
    output_dir: str = "runs/distill"
    dtype: str = "float32"
    num_texts: int = 192
    held_out: int = 16
    prompt_tokens: int = 16
    max_new_tokens: int = 384
    teacher_batch_size: int | Auto = AUTO
    teacher_cache: dict[str, Any] | None = None
    force: bool = False
    baselines: bool = True
    seed: int = 0
    save_every: int = 25
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        rows = count_or_auto("teacher_batch_size", self.teacher_batch_size)
        object.__setattr__(self, "teacher_batch_size", rows)
        at_least_one(self, "prompt_tokens", "max_new_tokens", "save_every")
        check_teacher_cache(self.teacher_cache, self.max_new_tokens)
        if (self.text is None) == (self.dataset is None):
            raise ValueError(
                "give either text, a file that is cut into pieces, or dataset, questions that the base answers"
            )
        if not 2 <= self.held_out < self.num_texts:
            raise ValueError(f"held_out must be at least 2 and below num_texts={self.num_texts}, got {self.held_out}")
