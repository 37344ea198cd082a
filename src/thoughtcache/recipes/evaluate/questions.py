"""The questions of a run: read and checked before any model is loaded, then made into prompts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from thoughtcache.ends import prompt_token_ids
from thoughtcache.evaluation.sampling import Task
from thoughtcache.evaluation.suites import Suite
from thoughtcache.recipes.evaluate.config import EvalRun, suite_of
from thoughtcache.recipes.prompts import encode_examples
from thoughtcache.tasks.data.bad_rows import Report
from thoughtcache.tasks.data.datasets import load_prompts
from thoughtcache.tasks.embedded.problem import sample_problems
from thoughtcache.tasks.example import Example
from thoughtcache.tasks.saved_prompt import has_prompt_format, saved_instruction


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The questions of one suite and how they are asked.

    Attributes:
        name: name of the suite.
        suite: its record.
        source: file, folder, hub id or embedded task that they are from.
        examples: the questions; identifiers are `NAME/NUMBER`, whatever the file is called.
        samples: answers per question.
        temperature: 0 decodes greedily.
        max_new_tokens: bound on the tokens of an answer.
        instruction: text after each question, or None.
    """

    name: str
    suite: Suite
    source: str
    examples: list[Example]
    samples: int
    temperature: float
    max_new_tokens: int
    instruction: str | None

    def rows(self) -> list[tuple[str, str]]:
        """(question, answer) as text, for a digest."""
        return [(str(example.prompt), str(example.answer)) for example in self.examples]


def read_questions(run: EvalRun, report: Report) -> list[Asked]:
    """The questions of each suite.

    Args:
        run: the settings.
        report: gets a sentence where rows are left out.

    Raises:
        ValueError: if a suite cannot be found or has rows that cannot be used.
    """
    return [_read(run, name, path, report) for name, path in run.named_paths()]


def tasks_of(
    run: EvalRun, asked: list[Asked], tokenizer: PreTrainedTokenizerBase, report: Report
) -> tuple[list[Task], list[Asked]]:
    """Every answer that is wanted, those to one question together; and the suites without the rows that were dropped.

    Raises:
        ValueError: if the chat template refuses a question.
    """
    tasks: list[Task] = []
    kept: list[Asked] = []
    for one in asked:
        if one.suite.embedded is None:
            examples, prompts = encode_examples(
                tokenizer,
                one.examples,
                instruction=one.instruction,
                system=run.system,
                bad_rows=run.bad_rows,
                report=report,
            )
        else:
            examples, prompts = one.examples, [prompt_token_ids(tokenizer, str(e.prompt)) for e in one.examples]
        kept.append(dataclasses.replace(one, examples=examples))
        tasks += [
            Task(
                suite=one.name,
                example=example,
                prompt_ids=prompt,
                sample=sample,
                temperature=one.temperature,
                max_new_tokens=one.max_new_tokens,
            )
            for example, prompt in zip(examples, prompts, strict=True)
            for sample in range(one.samples)
        ]
    return tasks, kept


def _read(run: EvalRun, name: str, path: str | None, report: Report) -> Asked:
    suite = suite_of(name)
    samples, temperature, max_new_tokens = run.asked(suite)
    if suite.embedded is not None:
        num = run.limit_of(name) or suite.limit or 1
        source, examples = suite.embedded, _embedded(suite.embedded, num, suite.num_operations)
    else:
        source, split = _source(run, name, suite, path)
        examples = load_prompts(
            source,
            split=split,
            prompt_column=run.prompt_column,
            answer_column=run.answer_column,
            answer_type=run.answer_type or suite.answer_type,
            limit=run.limit_of(name),
            need_answers=True,
            bad_rows=run.bad_rows,
            report=report,
        )
    return Asked(
        name=name,
        suite=suite,
        source=source,
        examples=_numbered(name, examples),
        samples=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        instruction=_instruction(run, suite),
    )


def _source(run: EvalRun, name: str, suite: Suite, path: str | None) -> tuple[str, str]:
    """Where a suite is read from, and its split."""
    if path is not None:
        return path, "test"
    if run.data is not None:
        folder = Path(run.data).expanduser()
        found = next((folder / own for own in suite.folders if (folder / own).is_dir()), None)
        if found is None:
            raise ValueError(
                f"{run.data} has no folder {' or '.join(suite.folders)}; give {name}=PATH, or leave out --data for the "
                f"hub's {suite.hub}"
            )
        return str(found), "test"
    assert suite.hub is not None
    return suite.hub, suite.split


def _embedded(task: str, num: int, num_operations: int | None) -> list[Example]:
    """Problems of the test split, as the embedded job draws them; a problem that is drawn twice is asked twice."""
    problems = sample_problems(task, num, "test", 0, num_operations=num_operations)
    return [dataclasses.replace(p.example, identifier=f"{task}/test/{i}") for i, p in enumerate(problems)]


def _numbered(name: str, examples: list[Example]) -> list[Example]:
    """The examples under identifiers that depend on the suite and the row alone, unless it has several files."""
    labels = {example.identifier.rpartition("/")[0] for example in examples}
    return [
        dataclasses.replace(
            example,
            identifier=f"{name}/{example.identifier.rpartition('/')[2] if len(labels) == 1 else example.identifier}",
        )
        for example in examples
    ]


def _instruction(run: EvalRun, suite: Suite) -> str | None:
    """What is put after a question: what was asked for, what the adapter was trained with, what the suite says."""
    if suite.embedded is not None:
        return None
    if run.instruction is not None:
        return run.instruction or None
    if run.adapter is not None and has_prompt_format(run.adapter):
        return saved_instruction(run.adapter)
    return suite.instruction
