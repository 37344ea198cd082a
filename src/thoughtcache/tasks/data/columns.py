r"""Finds the columns of the question and of the answer, and makes the messages of a question.

Names are compared without capitals and outer spaces. To teach a new form, add its column name below, the most reliable
first. `final_answer.py` finds the final answer inside its column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thoughtcache.tasks.data.conversation import (
    CONVERSATION_COLUMNS,
    is_conversation_column,
    parse_messages,
    question_of,
)
from thoughtcache.tasks.data.final_answer import final_answer

PROMPT_COLUMNS = ("prompt", "question", "problem", "query", "instruction", *CONVERSATION_COLUMNS)
ANSWER_COLUMNS = (
    "answer",
    "ref_answer",
    "final_answer",
    "reward_model.ground_truth",
    "solution",
    *CONVERSATION_COLUMNS,
)

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of the columns in use; a dot goes into a nested column; `answer` is None for data without answers."""

    prompt: str
    answer: str | None


def find_columns(rows: Sequence[Row], prompt_column: str | None, answer_column: str | None) -> Columns:
    """The named columns, or the first known ones in which any of the rows has something.

    Raises:
        ValueError: if a named column or every known prompt column is absent in all rows; it lists the columns that
            exist.
    """
    existing = list(dict.fromkeys(name for row in rows for name in row))
    listed = ", ".join(map(repr, existing))
    for name in (prompt_column, answer_column):
        if name is not None and not any(_has(row, name) for row in rows):
            raise ValueError(f"there is no column {name!r}; the columns are {listed}")
    prompt = prompt_column or _first(rows, PROMPT_COLUMNS, _is_filled)
    if prompt is None:
        hint = "; the columns of a CSV file are separated by commas, those of a TSV file by tabs"
        raise ValueError(
            f"none of the columns {listed} is a known prompt column ({', '.join(PROMPT_COLUMNS)}); "
            f"name it with --prompt-column{hint if len(existing) == 1 else ''}"
        )
    candidates = [name for name in ANSWER_COLUMNS if name != prompt or is_conversation_column(name)]
    return Columns(prompt=prompt, answer=answer_column or _first(rows, candidates, _is_answer))


def column_value(row: Row, name: str) -> Any:
    """Value of a column; `a.b` is column `b` inside column `a` unless a column is really called `a.b`.

    Raises:
        ValueError: if several columns differ from `name` and from each other in capitals or outer spaces only.
    """
    key = _key(row, name)
    if key is not None:
        return row[key]
    outer, _, inner = name.partition(".")
    nested_key = _key(row, outer) if inner else None
    nested = None if nested_key is None else row[nested_key]
    return column_value(nested, inner) if isinstance(nested, Mapping) else None


def to_messages(value: object, column: str) -> list[dict[str, str]]:
    """Chat messages of a prompt: a string is one user message, a whole conversation ends with its last question.

    Raises:
        ValueError: if it is neither non-empty text nor a non-empty list of messages that ends with the user's.
    """
    messages = parse_messages(value)
    if messages is not None and is_conversation_column(column):
        messages = question_of(messages)
    elif isinstance(value, str) and value.strip() and not is_conversation_column(column):
        messages = [{"role": "user", "content": value.strip()}]
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError(
            f"column {column!r} holds {value!r:.80}, allowed: text, or a list of messages that ends with the user's"
        )
    if any(not is_unicode(message["content"]) for message in messages):
        raise ValueError(f"column {column!r} holds half of a surrogate pair, which is no text")
    return messages


def is_unicode(text: str) -> bool:
    """Whether a tokenizer can read a text: JSON can spell halves of surrogate pairs, which no text has."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _first(rows: Sequence[Row], names: Sequence[str], good: Callable[[object, str], bool]) -> str | None:
    """The first name under which a row holds something good; else the first that exists at all."""
    present = [name for name in names if any(_has(row, name) for row in rows)]
    filled = (name for name in present if any(good(column_value(row, name), name) for row in rows))
    return next(filled, present[0] if present else None)


def _is_filled(value: object, column: str) -> bool:
    return value not in (None, []) and not (isinstance(value, str) and not value.strip())


def _is_answer(value: object, column: str) -> bool:
    return final_answer(value, column) is not None


def _has(row: Row, name: str) -> bool:
    if _key(row, name) is not None:
        return True
    outer, _, inner = name.partition(".")
    key = _key(row, outer) if inner else None
    return key is not None and isinstance(row[key], Mapping) and _has(row[key], inner)


def _key(row: Row, name: str) -> str | None:
    """The key of a column, which may differ from its name in capitals and outer spaces."""
    if name in row:
        return name
    wanted = name.strip().casefold()
    keys = [key for key in row if key.strip().casefold() == wanted]
    if len(keys) > 1:
        raise ValueError(f"the columns {', '.join(map(repr, keys))} could all be {name!r}; rename the others")
    return keys[0] if keys else None
