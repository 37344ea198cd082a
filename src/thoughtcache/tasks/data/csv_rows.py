"""Rows of CSV and TSV: quoted as in RFC 4180, with a header.

A row with another number of fields than the header has a fault: an unquoted comma in a question would shift all
columns after it. Blank lines and lines of empty fields are no rows. Spaces around the names in the header do not count.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thoughtcache.tasks.data.table_rows import TableRow, encoding_fault, file_row, refuse_repeated, refuse_utf_16

LONGEST_FIELD = 2**31 - 1
"""Instead of the 131072 characters of Python's `csv`: worked solutions of reasoning models are longer."""


def csv_rows(file: Path, delimiter: str = ",") -> Iterator[TableRow]:
    """The rows below the header; every value is text.

    Raises:
        ValueError: if names of the header are missing, repeated or unreadable, a quote is wrong, or the file is UTF-16.
    """
    refuse_utf_16(file)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        records = _records(csv.reader(lines, delimiter=delimiter, strict=True), file)
        header = _first(records, file)
        if header is None:
            return
        names = _column_names(header[1], file)
        filled = (record for record in records if any(value.strip() for value in record[1]))
        for index, (line, fields) in enumerate(filled):
            fault = _fault(fields, names, delimiter)
            values = None if fault else {name: value for name, value in zip(names, fields, strict=True) if name}
            yield file_row(file, index, values, line=line, fault=fault)


def _records(reader: Any, file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each record that is no blank line."""
    while True:
        line = reader.line_num + 1
        try:
            fields = _next_record(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{file.name!r} has a record from line {line} on that is no CSV ({error}); "
                'close every quote and write a quote inside a field twice ("")'
            ) from error
        if len(fields) > 1 or any(value.strip() for value in fields):
            yield line, fields


def _first(records: Iterator[tuple[int, list[str]]], file: Path) -> tuple[int, list[str]] | None:
    """The header; without names it would be passed over, and the first row taken for it."""
    header = next(records, None)
    if header is not None and not any(name.strip() for name in header[1]):
        raise ValueError(
            f"the header of {file.name!r} (line {header[0]}) names no column; give the columns names, such as "
            "question and answer"
        )
    return header


def _next_record(reader: Any) -> list[str]:
    # The limit belongs to the whole process, so it is given back after each record.
    previous = csv.field_size_limit(LONGEST_FIELD)
    try:
        fields: list[str] = next(reader)
        return fields
    finally:
        csv.field_size_limit(previous)


def _column_names(header: list[str], file: Path) -> list[str]:
    names = [name.strip() for name in header]
    fault = encoding_fault("".join(names))
    if fault is not None:
        raise ValueError(f"the header of {file.name!r} {fault}")
    refuse_repeated([name for name in names if name], file)
    return names


def _fault(fields: list[str], names: list[str], delimiter: str) -> str | None:
    separator = "a comma" if delimiter == "," else "a tab"
    remedy = f"put a text that holds {separator} into double quotes"
    if len(fields) != len(names):
        return f"has {len(fields)} fields where the header has {len(names)}; {remedy}"
    # A first column without a name is the row number that pandas writes.
    surplus = next((value for name, value in list(zip(names, fields, strict=True))[1:] if not name and value), None)
    if surplus is not None:
        return f"holds {surplus!r:.40} in a column without a name; {remedy}"
    return encoding_fault("".join(fields))
