"""The rows of a table file, each with its place, so that an error can name it.

A row that cannot be read alone (a line that is no JSON, a CSV row with too many fields) is a row with a fault and the
rows after it are still read; a file that cannot be read as a whole (an open quote, UTF-16) is refused.

Formats: `.jsonl`, `.json` (`json_rows.py`), `.csv`, `.tsv` (`csv_rows.py`), `.parquet`. Text is UTF-8, with or without
a byte order mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One row.

    Attributes:
        index: number of the row, from 0; the header and blank lines do not count.
        line: "line 5, " if it begins in that line of the file (from 1), "" where there are no lines.
        place: where it is, for a reader: `line 5, row 3 of 'train.csv'`.
        values: column name -> value; empty for a row with a fault.
        fault: why the row cannot be read, as the rest of a sentence that begins with `place`; None if it can.
    """

    index: int
    place: str
    line: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


def file_row(
    file: Path, index: int, values: Mapping[str, Any] | None, *, line: int | None = None, fault: str | None = None
) -> TableRow:
    """A row of a file."""
    begin = "" if line is None else f"line {line}, "
    place = f"{begin}row {index} of {file.name!r}"
    return TableRow(index=index, place=place, line=begin, values=values or {}, fault=fault)


def refuse_utf_16(file: Path) -> None:
    """Refuse text that says itself that it is not UTF-8.

    Raises:
        ValueError: if the file begins with a byte order mark of UTF-16.
    """
    with file.open("rb") as content:
        if content.read(2) in UTF_16_MARKS:
            raise ValueError(f"{file.name!r} is UTF-16, allowed: UTF-8; save it again as UTF-8")


def encoding_fault(text: str) -> str | None:
    """Why a text that was read with `errors="surrogateescape"` is not UTF-8; None if it is."""
    foreign = next((character for character in text if "\udc80" <= character <= "\udcff"), None)
    if foreign is None:
        return None
    return f"is not UTF-8 (byte 0x{ord(foreign) - 0xDC00:02x}); save the file as UTF-8"


def refuse_repeated(names: list[str], file: Path) -> None:
    """Refuse columns that share a name, of which all but the last would be lost.

    Raises:
        ValueError: if a name is repeated; the message contains it.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"{file.name!r} has several columns called {', '.join(map(repr, repeated))}, allowed: one of each name; "
            "rename them"
        )


def parquet_rows(file: Path) -> Iterator[TableRow]:
    """Rows of a parquet file; nested columns become dictionaries and lists.

    Raises:
        ValueError: if the file is no parquet, or has two columns of one name.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file.name!r} cannot be read as parquet ({error}); download it again") from error
    with table:
        refuse_repeated(list(table.schema_arrow.names), file)
        index = 0
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                yield file_row(file, index, values)
                index += 1
