"""Rows of JSON: one object per line (`.jsonl`), or one list of objects (`.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thoughtcache.tasks.data.table_rows import TableRow, encoding_fault, file_row, refuse_utf_16


def jsonl_rows(file: Path) -> Iterator[TableRow]:
    """One object per line; blank lines are no rows.

    Raises:
        ValueError: if the file is UTF-16.
    """
    refuse_utf_16(file)
    # Not splitlines(): U+2028 inside a string is no end of line in JSON.
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        index = 0
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            values, fault = _line_values(line)
            yield file_row(file, index, values, line=number, fault=fault)
            index += 1


def json_rows(file: Path) -> Iterator[TableRow]:
    """The rows of a list of objects, which may be the only such list of an object (`{"version": 1, "data": [...]}`).

    Raises:
        ValueError: if the file is not JSON or holds no single list of rows, or is UTF-16.
    """
    refuse_utf_16(file)
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        content = _decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file.name!r} is not JSON ({_reason(error)}); repair it, or call it .jsonl if each line is an object"
        ) from error
    foreign = encoding_fault(text) is not None
    for index, value in enumerate(_row_list(content, file)):
        fault = encoding_fault(json.dumps(value, ensure_ascii=False)) if foreign else None
        values, fault = (None, fault) if fault else _object(value)
        yield file_row(file, index, values, fault=fault)


def _row_list(content: object, file: Path) -> list[Any]:
    if isinstance(content, list):
        return content
    lists: dict[str, list[Any]] = {}
    if isinstance(content, dict):
        lists = {
            name: value
            for name, value in content.items()
            if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
        }
    if len(lists) == 1:
        return next(iter(lists.values()))
    found = f", in which {', '.join(map(repr, lists))} are lists of rows" if lists else ""
    raise ValueError(
        f"{file.name!r} holds a {type(content).__name__}{found}, allowed: a list of rows, or an object with one; "
        "or use .jsonl"
    )


def _line_values(line: str) -> tuple[dict[str, Any] | None, str | None]:
    """(values, None), or (None, fault)."""
    fault = encoding_fault(line)
    if fault is not None:
        return None, fault
    try:
        return _object(_decode(line))
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON ({_reason(error)})"


def _object(value: object) -> tuple[dict[str, Any] | None, str | None]:
    if isinstance(value, dict):
        return value, None
    return None, f"is a {type(value).__name__}, allowed: an object with named columns"


def _decode(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unrepeated)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return values


def _reason(error: Exception) -> str:
    """Short: the message of the decoder without its line number, which in JSONL is always 1."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}" + (f" of line {error.lineno}" if error.lineno > 1 else "")
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
