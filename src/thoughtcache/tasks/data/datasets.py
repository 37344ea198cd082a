"""Maths problems from files, folders and the hub, in one form whatever their columns are called.

    load_prompts("gsm8k/test.jsonl")                    # one file: .jsonl, .json, .parquet, .csv, .tsv
    load_prompts("gsm8k", split="test")                 # a folder: its files of that split
    load_prompts("owner/name", split="train")           # anything else: a data set of the Hugging Face hub
    load_prompts("owner/name:main", split="test")       # the same, one of its configurations

The columns are found by name (`columns.py`) or named by the caller. Rows keep their order; duplicates stay.
Not covered: filtering by difficulty, images, tool calls.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from thoughtcache.checks import one_of
from thoughtcache.tasks.data.bad_rows import BadRow, Report, settle_bad_rows
from thoughtcache.tasks.data.columns import Columns, column_value, find_columns, to_messages
from thoughtcache.tasks.data.csv_rows import csv_rows
from thoughtcache.tasks.data.final_answer import final_answer
from thoughtcache.tasks.data.json_rows import json_rows, jsonl_rows
from thoughtcache.tasks.data.references import reference_fault
from thoughtcache.tasks.data.table_rows import TableRow, parquet_rows
from thoughtcache.tasks.example import Example
from thoughtcache.tasks.maths.answer_types import ANSWER_TYPES

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
SPLITS = ("train", "validation", "valid", "val", "dev", "test")


def load_prompts(
    source: str,
    *,
    split: str = "train",
    prompt_column: str | None = None,
    answer_column: str | None = None,
    answer_type: str = "auto",
    limit: int | None = None,
    need_answers: bool = False,
    keep_columns: bool = False,
    bad_rows: str = "refuse",
    report: Report = warnings.warn,
) -> list[Example]:
    """Read the problems of `source`.

    Args:
        source: a file, a folder, or the name of a data set on the hub, with `:configuration` where it has several.
        split: which files of a folder, or which split of a hub data set; a single file is read whatever it is called.
        prompt_column: column of the question, dots for nested ones (`extra.question`); None looks for a known name.
        answer_column: column of the answer, likewise; without a known one, the answers are None.
        answer_type: how all answers are compared, one of `ANSWER_TYPES`; "auto" takes it from each reference.
        limit: look at this many rows, from the start; a row that is left out counts.
        need_answers: a row without a reference that an answer can be compared with is a bad row.
        keep_columns: keep what else a row says in `Example.columns`.
        bad_rows: "refuse" or "drop" rows that cannot be read, or have no usable prompt or reference.
        report: gets one sentence about the rows that were dropped.

    Returns:
        One `Example` per usable row, in order.

    Raises:
        ValueError: if the source is missing or empty, its suffix is not supported, a split or a column is not there, a
            row is bad under "refuse", or no row can be used.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}, allowed: 1 or more; leave it out for all rows")
    one_of("answer_type", answer_type, ANSWER_TYPES)
    examples: list[Example] = []
    bad: list[BadRow] = []
    for label, table in _tables(source, split):
        rows = list(islice(table, None if limit is None else limit - len(examples) - len(bad)))
        readable = [row for row in rows if row.fault is None]
        if not readable:
            bad += [BadRow(place=row.place, reason=str(row.fault)) for row in rows]
            continue
        columns = find_columns([row.values for row in readable], prompt_column, answer_column)
        if need_answers and columns.answer is None:
            raise ValueError(
                f"{source} has no reference answers for the reward of GRPO; name their column with --answer-column, "
                "or distil only with --grpo-steps 0"
            )
        for row in rows:
            result = _example(row, label, columns, need_answers, answer_type)
            if keep_columns and isinstance(result, Example):
                result = replace(result, columns=dict(row.values))
            (examples if isinstance(result, Example) else bad).append(result)  # type: ignore[arg-type]
    if not examples and not bad:
        raise ValueError(f"{source!r} (split {split!r}) holds no rows; check that the file was downloaded completely")
    settle_bad_rows(bad, len(examples) + len(bad), bad_rows, report)
    return examples


def _example(row: TableRow, label: str, columns: Columns, need_answers: bool, answer_type: str) -> Example | BadRow:
    if row.fault is not None:
        return BadRow(place=row.place, reason=row.fault)
    identifier = f"{label}/{row.index}"
    place = f"{row.line}{identifier}:"
    try:
        prompt = to_messages(column_value(row.values, columns.prompt), columns.prompt)
        value = None if columns.answer is None else column_value(row.values, columns.answer)
    except ValueError as error:
        return BadRow(place=place, reason=str(error))
    answer = None if columns.answer is None else final_answer(value, columns.answer)
    fault = reference_fault(answer, answer_type) if need_answers else None
    if fault is not None:
        return BadRow(place=place, reason=f"column {columns.answer!r} holds {value!r:.80}, {fault}")
    return Example(
        prompt=prompt, answer=answer, identifier=identifier, kind="maths" if answer_type == "auto" else answer_type
    )


def _tables(source: str, split: str) -> Iterator[tuple[str, Iterator[TableRow]]]:
    """(label, rows) of each file, or of the one hub split."""
    path = Path(source).expanduser()
    if path.is_dir():
        for file in _files_of_split(path, split):
            yield f"{path.resolve().name}/{file.stem}", _rows(file)
    elif path.is_file():
        yield f"{path.resolve().parent.name}/{path.stem}", _rows(path)
    elif path.is_absolute() or source.startswith((".", "~")) or _is_table(path) or len(path.parts) > 2:
        raise ValueError(f"{source!r} does not exist; pass an existing file or folder, or a data set of the hub")
    else:
        yield f"{source}/{split}", _hub_rows(source, split)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """`train.jsonl`, `train-00000-of-00002.parquet`; else the only file, unless it is named after another split."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and _is_table(file))
    if not files:
        raise ValueError(f"{str(folder)!r} has no file that ends in {', '.join(SUFFIXES)}; pass another folder")
    chosen = [file for file in files if _split_name(file) == split]
    # A test set must never be taken for training data because it is the only file.
    if not chosen and len(files) == 1 and _split_name(files[0]) not in SPLITS:
        chosen = files
    if not chosen:
        raise ValueError(
            f"{str(folder)!r} has no split {split!r}, only {', '.join(file.name for file in files)}; "
            "pass --split or one of these files"
        )
    same = next((b for a, b in pairwise(chosen) if a.stem == b.stem), None)
    if same is not None:
        raise ValueError(
            f"{str(folder)!r} has {same.stem!r} in several formats, perhaps the same rows twice; pass one of the files"
        )
    return chosen


def _split_name(file: Path) -> str:
    """The split that a file is named after: `train-00000-of-00002`, `gsm8k_test`; without one, its first word."""
    words = re.split(r"[-_. ]", file.stem.casefold())
    return next((word for word in words if word in SPLITS), words[0])


def _is_table(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _rows(file: Path) -> Iterator[TableRow]:
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        return jsonl_rows(file)
    if suffix == ".json":
        return json_rows(file)
    if suffix in (".csv", ".tsv"):
        return csv_rows(file, delimiter="," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        return parquet_rows(file)
    raise ValueError(f"{file.name!r} ends in {file.suffix!r}, allowed: {', '.join(SUFFIXES)}; convert the file")


def _hub_rows(name: str, split: str) -> Iterator[TableRow]:
    import datasets

    hub_id, _, configuration = name.partition(":")
    options = {"name": configuration} if configuration else {}
    try:
        table: Sequence[dict[str, Any]] = datasets.load_dataset(hub_id, split=split, **options)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(f"{name!r} is no file, no folder and no data set of the hub that can be read") from error
    except ConnectionError as error:
        raise ValueError(
            f"{name!r} is no file or folder, and the hub cannot be reached ({error}); pass a file, or check the network"
        ) from error
    except (datasets.exceptions.DatasetsError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name!r} cannot be read from the hub ({reason}); download it and pass the file") from error
    for index, values in enumerate(table):
        yield TableRow(index=index, place=f"row {index} of {name!r}", values=values)
