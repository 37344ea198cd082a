"""Tables as people have them: byte order marks, quotes, long fields, damage; refusals name the file and the row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from thoughtcache.tasks.data.datasets import load_prompts
from thoughtcache.tasks.example import Example


def load(path: Path, content: str | bytes, **options: Any) -> list[Example]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_prompts(str(path), **options)


def texts(examples: list[Example]) -> list[tuple[str, str | None]]:
    return [(example.prompt[0]["content"], example.answer) for example in examples]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "question,answer\nWhat is 1,000 + 1?,1001\n"),
        ("a.csv", "question,answer\n2+2?,4\nWhat is 1,000 + 1?,1001\n"),
        ("a.csv", "question,answer,\nWhat is 1,000 + 1?,1001\n"),
        ("a.csv", "question,answer\n2+2?,4\n3+3?\n"),
        ("a.tsv", "question\tanswer\nA\tB?\t4\n"),
    ],
    ids=["only row", "later row", "unnamed last column", "too few", "tsv"],
)
def test_a_row_with_shifted_columns_is_refused_with_its_place(tmp_path: Path, name: str, content: str) -> None:
    row = content.strip().count("\n") - 1
    with pytest.raises(ValueError, match=rf"line {row + 2}, row {row} of '{name}' (has|holds) .*double quotes"):
        load(tmp_path / name, content)


def test_lines_of_quoted_fields_are_counted(tmp_path: Path) -> None:
    content = 'question,answer\n"two\nlines",1\n\n,\n"three\n\nlines",2\nWhat, 3?,3\n'
    with pytest.raises(ValueError, match=r"1 of 3 rows .*line 9, row 2 of 'a\.csv' has 3 fields .* header has 2"):
        load(tmp_path / "a.csv", content)


def test_quoted_commas_and_the_row_numbers_of_pandas_are_read(tmp_path: Path) -> None:
    content = ',question,answer,\n0,"What is 1,000 + 1?","1,001",\n1,"a ""b""?",2,\n'
    assert texts(load(tmp_path / "a.csv", content)) == [("What is 1,000 + 1?", "1,001"), ('a "b"?', "2")]


@pytest.mark.parametrize("content", ['q,answer\n"open?,4\nx,5\n', 'q,answer\n"a" b,4\n'], ids=["open", "inside"])
def test_a_wrong_quote_is_refused_with_its_line(tmp_path: Path, content: str) -> None:
    """An open quote takes the rest of the file for one field; dropping it would drop all rows after it."""
    with pytest.raises(ValueError, match=r"'a\.csv' has a record from line 2 on that is no CSV .*close every quote"):
        load(tmp_path / "a.csv", content, prompt_column="q", bad_rows="drop")


def test_fields_above_128_kib_are_read_and_the_limit_is_left_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    assert texts(load(tmp_path / "a.csv", f"question,answer\n{long},4\n2?,5\n", limit=1)) == [(long, "4")]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "question,answer\n2+2?,4\n"),
        ("a.tsv", "question\tanswer\n2+2?\t4\n"),
        ("a.CSV", "Question, Answer \r\n2+2?,4\r\n"),
        ("a.csv", "question,answer\n\n2+2?,4\n,\n\n"),
        ("a.jsonl", '{"question": "2+2?", "answer": "4"}\n'),
        ("a.jsonl", '\n{"QUESTION": "2+2?", "Answer": "4"}\n\n'),
        ("a.json", '[{"question": "2+2?", "answer": "4"}]'),
        ("a.json", '{"version": 1, "authors": ["x"], "data": [{"question": "2+2?", "answer": "4"}]}'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_the_same_row(tmp_path: Path, name: str, content: str, mark: str) -> None:
    assert texts(load(tmp_path / name, mark + content)) == [("2+2?", "4")]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.csv", "question,answer\n2+2?,4\ncaf\xe9?,5\n", r"line 3, row 1 of 'a\.csv'"),
        ("a.jsonl", '{"question": "2?"}\n\n{"question": "caf\xe9?"}\n', r"line 3, row 1 of 'a\.jsonl'"),
        ("a.json", '[{"question": "2?"},\n{"question": "caf\xe9?"}]', r"row 1 of 'a\.json'"),
        ("a.csv", "question,r\xe9ponse\n2+2?,4\n", r"the header of 'a\.csv'"),
    ],
)
def test_bytes_that_are_not_utf_8_are_named(tmp_path: Path, name: str, content: str, place: str) -> None:
    with pytest.raises(ValueError, match=rf"{place} is not UTF-8 \(byte 0xe9\); save the file as UTF-8"):
        load(tmp_path / name, content.encode("latin-1"))


@pytest.mark.parametrize("header", [",", ",,", " , ", "\n,"])
def test_a_header_without_names_is_not_passed_over(tmp_path: Path, header: str) -> None:
    """The first row would silently become the header."""
    with pytest.raises(ValueError, match=r"the header of 'a\.csv' \(line \d\) names no column; give the columns names"):
        load(tmp_path / "a.csv", f"{header}\nquestion,answer\n2+2?,4\n")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl"])
def test_utf_16_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' is UTF-16, allowed: UTF-8"):
        load(tmp_path / name, "question,answer\n2?,3\n".encode("utf-16"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "question,answer,answer\n2?,3,4\n", r"'a\.csv' has several columns called 'answer'"),
        ("a.csv", "question,answer, answer\n2?,3,4\n", "several columns called 'answer'"),
        ("a.csv", "question;answer\n2+2?;4\n", r"columns 'question;answer' is .*separated by commas"),
        ("a.jsonl", '{"question": "2?", "question": "3?"}', r"line 1, row 0 of 'a\.jsonl' is not JSON \('question'"),
        ("a.jsonl", '{"question": 1' + "0" * 5000 + "}", r"line 1, row 0 of 'a\.jsonl' is not JSON"),
        ("a.jsonl", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"Question ": "2?", "question  ": "3?"}', "'Question ', 'question  ' could all be 'question'"),
        ("a.json", '{"a": [{"question": "1"}], "b": [{"question": "2"}]}', "in which 'a', 'b' are lists of rows"),
        ("a.json", '{"question": "1"}\n{"question": "2"}', r"'a\.json' is not JSON .*call it \.jsonl"),
        ("a.json", '[{"question": "1"}, 2]', r"row 1 of 'a\.json' is a int"),
        ("a.parquet", "no parquet", r"'a\.parquet' cannot be read as parquet"),
    ],
)
def test_damaged_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name, content)


def test_parquet_with_nested_columns(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": [{"role": "user", "content": "Sum?"}], "reward_model": {"ground_truth": "34", "style": "rule"}},
        {"prompt": [{"role": "user", "content": "More?"}], "reward_model": {"ground_truth": "35", "style": "rule"}},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts(load_prompts(str(tmp_path / "a.parquet"))) == [("Sum?", "34"), ("More?", "35")]

    repeated = pyarrow.table([["1?"], ["1"], ["2"]], names=["question", "answer", "answer"])
    pyarrow.parquet.write_table(repeated, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"'b\.parquet' has several columns called 'answer'"):
        load_prompts(str(tmp_path / "b.parquet"))


def test_half_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    """JSON can spell it, tokenizers cannot read it."""
    with pytest.raises(ValueError, match=r"line 2, .*/a/1: column 'question' holds half of a surrogate pair"):
        load(tmp_path / "a.jsonl", "".join(json.dumps({"question": text}) + "\n" for text in ("ok", "\ud83d")))


def test_files_named_after_another_split_are_not_training_data(tmp_path: Path) -> None:
    load(tmp_path / "gsm8k_test.jsonl", '{"question": "2?"}')
    with pytest.raises(ValueError, match=r"no split 'train', only gsm8k_test\.jsonl"):
        load_prompts(str(tmp_path))
    load(tmp_path / "gsm8k_train.jsonl", '{"question": "3?"}')
    assert texts(load_prompts(str(tmp_path))) == [("3?", None)]
    load(tmp_path / "gsm8k_train.csv", "question\n3?\n")
    with pytest.raises(ValueError, match="'gsm8k_train' in several formats"):
        load_prompts(str(tmp_path))
