r"""Which column is the question, which the answer, and what the final answer is inside it.

Known forms: a plain question, a chat list (verl), `... #### 72` (GSM8K), a worked solution with `\boxed{}` (MATH,
Minerva), a list of answers (OlympiadBench), floats (AMC), `reward_model.ground_truth` (verl). To teach a new form,
add its column name below, the most reliable first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thoughtcache.tasks.answers import last_boxed

PROMPT_COLUMNS = ("prompt", "question", "problem", "query", "instruction")
ANSWER_COLUMNS = ("answer", "ref_answer", "final_answer", "reward_model.ground_truth", "solution")
DOLLAR = re.compile(r"(?<!\\)\$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of the columns in use; a dot goes into a nested column; `answer` is None for data without answers."""

    prompt: str
    answer: str | None


def find_columns(row: Mapping[str, Any], prompt_column: str | None, answer_column: str | None) -> Columns:
    """The named columns, or the first known ones of this row.

    Raises:
        ValueError: if a named column or every known prompt column is absent; it lists the columns that exist.
    """
    for name in (prompt_column, answer_column):
        if name is not None and not _has(row, name):
            raise ValueError(f"there is no column {name!r}; the columns are {', '.join(map(repr, row))}")
    prompt = prompt_column or next((name for name in PROMPT_COLUMNS if _has(row, name)), None)
    if prompt is None:
        raise ValueError(
            f"none of the columns {', '.join(map(repr, row))} is a known prompt column "
            f"({', '.join(PROMPT_COLUMNS)}); name it with prompt_column"
        )
    known = (name for name in ANSWER_COLUMNS if name != prompt and _has(row, name))
    return Columns(prompt=prompt, answer=answer_column or next(known, None))


def column_value(row: Mapping[str, Any], name: str) -> Any:
    """Value of a column; `a.b` is column `b` inside column `a` unless a column is really called `a.b`."""
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    nested = row.get(outer)
    return column_value(nested, inner) if inner and isinstance(nested, Mapping) else None


def to_messages(value: object, column: str, identifier: str) -> list[dict[str, str]]:
    """Chat messages of a prompt: a string is one user message.

    Raises:
        ValueError: if it is neither non-empty text nor a non-empty list of messages with text.
    """
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value.strip()}]
    if isinstance(value, list) and value and all(_is_message(message) for message in value):
        return [{"role": message["role"], "content": message["content"]} for message in value]
    raise ValueError(
        f"{identifier}: column {column!r} holds {value!r:.80}, allowed: non-empty text, or a list of messages with "
        "'role' and 'content'; name the right column with prompt_column or remove the row"
    )


def final_answer(value: object, column: str) -> str | None:
    r"""The answer alone, as a string; None if the row has none.

    A solution text (column `solution`) without `\boxed{}` or `####` has no final answer that could be compared.
    """
    if value is None or isinstance(value, Mapping):
        return None
    if isinstance(value, list):
        parts = [part for part in (final_answer(item, column) for item in value) if part is not None]
        return ", ".join(parts) or None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value).strip()
    _, mark, after = text.rpartition("####")
    if mark:
        return after.strip().replace(",", "") or None
    boxed = last_boxed(text)
    if boxed is not None or column.rpartition(".")[2] == "solution":
        return boxed or None
    return DOLLAR.sub("", text).strip() or None


def _has(row: Mapping[str, Any], name: str) -> bool:
    if name in row:
        return True
    outer, _, inner = name.partition(".")
    nested = row.get(outer)
    return bool(inner) and isinstance(nested, Mapping) and _has(nested, inner)


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
