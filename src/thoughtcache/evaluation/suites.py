"""The suites of questions that `thoughtcache eval` knows: where they come from and how they are asked by default.

A suite is a record. The columns of a data set are found by name (`tasks/data/columns.py`), because mirrors of a suite
name them differently; `references` says under which names they were found. To add a suite, add a record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from thoughtcache.checks import one_of
from thoughtcache.tasks.chat import REASONING_INSTRUCTION
from thoughtcache.tasks.embedded.long_chains import MOST_OPERATIONS, most_tokens
from thoughtcache.tasks.maths.answer_types import ANSWER_TYPES

PAPER_MAX_NEW_TOKENS = 3072
SAMPLED_TEMPERATURE = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """One suite.

    Attributes:
        title: its name for people.
        hub: data set of the hub, `owner/name` or `owner/name:configuration`; None if it is made here.
        split: split of the hub's data set; files and folders of a user are always asked for "test".
        folders: names under which a folder of data sets may have it.
        columns: columns of the question and of the answer in the hub's data set and in common copies, for readers.
        answer_type: how answers are compared, one of `ANSWER_TYPES`.
        instruction: what is put after a question by default; None for nothing.
        samples: answers per question.
        temperature: temperature of the sampling; 0 decodes greedily.
        max_new_tokens: bound on the tokens of an answer.
        embedded: the embedded task that draws its questions; None for suites of text.
        num_operations: operations of the embedded task, where it has a number of them; None for its own.
        limit: questions by default; None for all.
    """

    title: str
    hub: str | None = None
    split: str = "test"
    folders: tuple[str, ...] = ()
    columns: tuple[str, str] = ("", "")
    answer_type: str = "auto"
    instruction: str | None = REASONING_INSTRUCTION
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = PAPER_MAX_NEW_TOKENS
    embedded: str | None = None
    num_operations: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        one_of("answer_type", self.answer_type, ANSWER_TYPES)


def _contest(title: str, hub: str, split: str, answer_type: str, columns: tuple[str, str], folder: str) -> Suite:
    """Few hard questions: 16 samples of each, for pass@16 as in the paper."""
    return Suite(
        title=title,
        hub=hub,
        split=split,
        folders=(folder,),
        columns=columns,
        answer_type=answer_type,
        samples=16,
        temperature=SAMPLED_TEMPERATURE,
    )


SUITES: dict[str, Suite] = {
    "math500": Suite(
        title="MATH-500",
        hub="HuggingFaceH4/MATH-500",
        folders=("math500", "math_500"),
        columns=("problem or question", "answer or ref_answer"),
    ),
    "aime24": _contest(
        "AIME 2024", "HuggingFaceH4/aime_2024", "train", "aime", ("problem or question", "answer"), "aime24"
    ),
    "aime25": _contest(
        "AIME 2025", "math-ai/aime25", "test", "aime", ("problem or question", "answer or ref_answer"), "aime25"
    ),
    "amc23": _contest("AMC 2023", "math-ai/amc23", "test", "integer", ("question", "answer"), "amc23"),
    "olympiadbench": Suite(
        title="OlympiadBench",
        hub="math-ai/olympiadbench",
        folders=("olympiadbench",),
        columns=("question", "final_answer"),
    ),
    "minerva": Suite(
        title="Minerva",
        hub="math-ai/minervamath",
        folders=("minerva", "minerva_math", "minervamath"),
        columns=("question or problem", "answer or solution"),
    ),
    "gsm8k": Suite(
        title="GSM8K",
        hub="openai/gsm8k:main",
        folders=("gsm8k",),
        columns=("question", "answer"),
        answer_type="integer",
    ),
    "embedded": Suite(title="chains", embedded="chains", instruction=None, max_new_tokens=56, limit=1000),
    "multiplication": Suite(
        title="multiplication", embedded="multiplication", instruction=None, max_new_tokens=46, limit=1000
    ),
}
"""Name -> suite. Those of the embedded reasoner have the lengths and test questions of `thoughtcache train`."""


_GROWING = re.compile(r"chains-([1-9]\d*)")


def growing_suite(num_operations: int) -> str:
    """The name of the suite whose long chains have so many operations."""
    return f"chains-{num_operations}"


def find_suite(name: str) -> Suite | None:
    """The suite of this name: one of the table, or `chains-N`, long chains of N operations; None if there is none.

    Raises:
        ValueError: for more operations than there are suites.
    """
    found = _GROWING.fullmatch(name)
    if found is None:
        return SUITES.get(name)
    num_operations = int(found.group(1))
    if num_operations > MOST_OPERATIONS:
        raise ValueError(f"suite={name!r} has too many operations; choose chains-1 to chains-{MOST_OPERATIONS}")
    return replace(
        SUITES["embedded"],
        embedded="long_chains",
        title=f"chains of {num_operations} operations",
        num_operations=num_operations,
        max_new_tokens=most_tokens(num_operations),
    )


def own_suite(name: str) -> Suite:
    """A suite of the user's questions: one answer each, decoded greedily, compared by the type of each reference."""
    return Suite(title=name)
