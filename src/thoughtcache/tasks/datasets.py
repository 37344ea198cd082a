"""Maths problems from files, folders and the hub, in one form whatever their columns are called.

    load_prompts("gsm8k/test.jsonl")                    # one file: .jsonl, .json, .parquet, .csv
    load_prompts("gsm8k", split="test")                 # a folder: its files of that split
    load_prompts("owner/name", split="train")           # anything else: a data set of the Hugging Face hub

The columns are found by name (`columns.py`) or named by the caller. Rows keep their order; duplicates stay.
Not covered: filtering by difficulty, images, tool calls.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from thoughtcache.tasks.columns import column_value, final_answer, find_columns, to_messages

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
SPLITS = ("train", "validation", "valid", "val", "dev", "test")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class MathExample:
    r"""One problem.

    Attributes:
        prompt: chat messages, each with "role" and "content".
        answer: the final answer alone (`72`, `\frac{1}{2}`), or None if the data set has no answers.
        identifier: data set and row index, unique inside one `load_prompts` call: `gsm8k/test/17`.
    """

    prompt: list[dict[str, str]]
    answer: str | None
    identifier: str


def load_prompts(
    source: str,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    answer_column: str | None = None,
    limit: int | None = None,
) -> list[MathExample]:
    """Read the problems of `source`.

    Args:
        source: a file, a folder, or the name of a data set on the hub.
        split: which files of a folder, or which split of a hub data set; a single file is read whatever it is called.
        prompt_column: column of the question, dots for nested ones (`extra.question`); None looks for a known name.
        answer_column: column of the answer, likewise; without a known one, the answers are None.
        limit: read at most this many problems, from the start.

    Raises:
        ValueError: for a missing or empty source, an unsupported suffix, a split or a column that is not there, or
            a row without a usable prompt.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, allowed: 1 or more, or None for all problems")
    examples: list[MathExample] = []
    for label, table in _tables(source, split):
        rows = list(islice(table, None if limit is None else limit - len(examples)))
        if not rows:
            continue
        names = find_columns(rows[0], prompt_column, answer_column)
        for index, row in enumerate(rows):
            identifier = f"{label}/{index}"
            answer = None if names.answer is None else final_answer(column_value(row, names.answer), names.answer)
            prompt = to_messages(column_value(row, names.prompt), names.prompt, identifier)
            examples.append(MathExample(prompt=prompt, answer=answer, identifier=identifier))
    if not examples:
        raise ValueError(f"{source!r} (split {split!r}) holds no rows; check that the file was downloaded completely")
    return examples


def _tables(source: str, split: str) -> Iterator[tuple[str, Iterator[Row]]]:
    """(label, rows) of each file, or of the one hub split."""
    path = Path(source).expanduser()
    if path.is_dir():
        for file in _files_of_split(path, split):
            yield f"{path.resolve().name}/{file.stem}", _rows(file)
    elif path.is_file():
        yield f"{path.resolve().parent.name}/{path.stem}", _rows(path)
    elif path.is_absolute() or source.startswith((".", "~")) or path.suffix in SUFFIXES or len(path.parts) > 2:
        raise ValueError(f"{source!r} does not exist; pass an existing file or folder, or a data set of the hub")
    else:
        yield f"{source}/{split}", _hub_rows(source, split)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """`train.jsonl`, `train-00000-of-00002.parquet`; else the only file, unless it is named after another split."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in SUFFIXES)
    if not files:
        raise ValueError(f"{str(folder)!r} has no file that ends in {', '.join(SUFFIXES)}; pass another folder")
    chosen = [file for file in files if _split_name(file) == split]
    if chosen:
        return chosen
    # A test set must never be taken for training data because it is the only file.
    if len(files) == 1 and _split_name(files[0]) not in SPLITS:
        return files
    raise ValueError(
        f"{str(folder)!r} has no split {split!r}, only {', '.join(file.name for file in files)}; "
        "pass split=... or one of these files"
    )


def _split_name(file: Path) -> str:
    return file.stem.replace("_", "-").split("-", maxsplit=1)[0]


def _rows(file: Path) -> Iterator[Row]:
    if file.suffix == ".jsonl":
        return _jsonl_rows(file)
    if file.suffix == ".json":
        return _json_rows(file)
    if file.suffix == ".csv":
        return _csv_rows(file)
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    raise ValueError(f"{file.name!r} ends in {file.suffix!r}, allowed: {', '.join(SUFFIXES)}; convert the file")


def _checked(row: object, file: Path, index: int) -> Row:
    if not isinstance(row, dict):
        raise ValueError(
            f"row {index} of {file.name!r} is a {type(row).__name__}, allowed: an object with named columns"
        )
    return row


def _jsonl_rows(file: Path) -> Iterator[Row]:
    # Not splitlines(): U+2028 inside a string is no end of line in JSON.
    with file.open(encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            if line.strip():
                yield _checked(_decoded(line, file, index), file, index)


def _json_rows(file: Path) -> Iterator[Row]:
    rows = _decoded(file.read_text(encoding="utf-8"), file, 0)
    if not isinstance(rows, list):
        raise ValueError(f"{file.name!r} holds a {type(rows).__name__}, allowed: a list of rows; or use .jsonl")
    for index, row in enumerate(rows):
        yield _checked(row, file, index)


def _decoded(text: str, file: Path, index: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"row {index} of {file.name!r} is not JSON ({error}); repair or remove it") from error


def _csv_rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    import datasets

    try:
        table: Sequence[Row] = datasets.load_dataset(name, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(f"{name!r} is no file, no folder and no data set of the hub that can be read") from error
    except ConnectionError as error:
        raise ValueError(
            f"{name!r} is no file or folder, and the hub cannot be reached ({error}); pass a file, or check the network"
        ) from error
    yield from table
