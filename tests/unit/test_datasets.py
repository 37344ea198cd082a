"""Problems from files: every shape of row that the known maths data sets have, in miniature, and each refusal."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from thoughtcache.tasks.data.datasets import load_prompts
from thoughtcache.tasks.data.final_answer import final_answer

ROWS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "gsm8k": ({"question": "Clips?", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"}, "Clips?", "1072"),
    "aime24": (
        {"id": 60, "problem": "Walk?", "solution": "so \\boxed{1}", "answer": "025", "question": "Walk?"},
        "Walk?",
        "025",
    ),
    "aime25": ({"data_source": "AIME", "question": "Angle?", "ref_answer": "336^\\circ"}, "Angle?", "336^\\circ"),
    "amc23": ({"id": 0, "problem": "Miles?", "answer": 27.0}, "Miles?", "27"),
    "minerva": (
        {"problem": "Diameter?", "solution": "[s=\\boxed{\\frac{16}{10}} cm]", "idx": 0},
        "Diameter?",
        "\\frac{16}{10}",
    ),
    "olympiad": (
        {"question": "Which k?", "final_answer": ["$69$,$84$"], "solution": ["long"], "unit": None},
        "Which k?",
        "69,84",
    ),
    "verl": (
        {"prompt": [{"role": "user", "content": "Sum?"}], "reward_model": {"ground_truth": "34", "style": "rule"}},
        "Sum?",
        "34",
    ),
    "unanswered": ({"instruction": "Think."}, "Think.", None),
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ROWS)
def test_known_shapes(tmp_path: Path, name: str) -> None:
    row, question, answer = ROWS[name]
    (example,) = load_prompts(write_jsonl(tmp_path / f"{name}.jsonl", [row]))
    assert example.prompt == [{"role": "user", "content": question}]
    assert example.answer == answer
    assert example.identifier == f"{tmp_path.name}/{name}/0"


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_formats_agree(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": f"Question {index},\u2028\nwith lines", "answer": str(index)} for index in range(3)]
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, ["question", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    examples = load_prompts(str(path))
    assert [example.prompt[0]["content"] for example in examples] == [row["question"] for row in rows]
    assert [example.answer for example in examples] == ["0", "1", "2"]


def test_folder_gives_the_files_of_the_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question": name, "answer": "1"}])
    (tmp_path / "SOURCE.md").write_text("not data")
    train = [example.prompt[0]["content"] for example in load_prompts(str(tmp_path))]
    assert train == ["train-00000-of-00002", "train-00001-of-00002"]
    assert [example.prompt[0]["content"] for example in load_prompts(str(tmp_path), split="test")] == ["test"]


def test_only_file_of_a_folder_is_taken_unless_it_is_another_split(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    write_jsonl(path, [{"question": "q", "answer": "1"}])
    assert len(load_prompts(str(tmp_path))) == 1
    path.rename(tmp_path / "test.jsonl")
    with pytest.raises(ValueError, match=r"no split 'train', only test\.jsonl"):
        load_prompts(str(tmp_path))


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_limit_counts_over_files(tmp_path: Path, limit: int) -> None:
    for name in ("train_a", "train_b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question": f"{name}{index}"} for index in range(2)])
    contents = [example.prompt[0]["content"] for example in load_prompts(str(tmp_path), limit=limit)]
    assert contents == ["train_a0", "train_a1", "train_b0", "train_b1"][:limit]


def test_named_columns(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [{"question": "no", "text": {"body": "yes"}, "gold": 7, "answer": "8"}])
    (example,) = load_prompts(source, prompt_column="text.body", answer_column="gold")
    assert (example.prompt[0]["content"], example.answer) == ("yes", "7")


@pytest.mark.parametrize(
    ("value", "column", "expected"),
    [
        (27.5, "answer", "27.5"),
        (float("nan"), "answer", None),
        (-3.0, "answer", "-3"),
        (["1", "2"], "final_answer", "1, 2"),
        ([], "final_answer", None),
        ("no box here", "solution", None),
        ("\\boxed{1} or \\boxed{2}", "solution", "2"),
        ("\\boxed{\\frac{1}{2", "solution", None),
        ("\\$5", "answer", "\\$5"),
        ("  ", "answer", None),
    ],
)
def test_final_answer(value: object, column: str, expected: str | None) -> None:
    assert final_answer(value, column) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", r"ends in '\.txt', allowed: \.jsonl"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", '{"question": "q"}\n{"quest', "row 1 of 'a.jsonl' is not JSON"),
        ("a.jsonl", "[1, 2]", "row 0 of 'a.jsonl' is a list"),
        ("a.json", '{"question": "q"}', "holds a dict, allowed: a list"),
        ("a.jsonl", '{"text": "q", "label": 1}', "columns 'text', 'label' is a known prompt column"),
        ("a.jsonl", '{"question": ""}', "a/0: column 'question' holds ''"),
        ("a.jsonl", '{"prompt": [{"role": "user"}]}', "list of messages"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(str(tmp_path / name))


def test_refused_arguments(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [{"question": "q", "answer": "1"}])
    with pytest.raises(ValueError, match="no column 'gold'; the columns are 'question', 'answer'"):
        load_prompts(source, answer_column="gold")
    with pytest.raises(ValueError, match="limit is 0, allowed: 1 or more"):
        load_prompts(source, limit=0)
    with pytest.raises(ValueError, match="does not exist"):
        load_prompts(str(tmp_path / "absent.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no file that ends in \.jsonl"):
        load_prompts(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Dataset scripts are no longer supported"), r"cannot be read from the hub \(Dataset scripts"),
        (datasets.exceptions.DatasetGenerationError("An error\noccurred"), r"cannot be read .*\(An error occurred\)"),
        (datasets.exceptions.DatasetNotFoundError("gone"), "no data set of the hub"),
        (ConnectionError("no network"), "check the network"),
    ],
)
def test_errors_of_the_hub_are_sentences(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def failing(name: str, split: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", failing)
    with pytest.raises(ValueError, match=f"'owner/name' .*{message}"):
        load_prompts("owner/name")


def test_rows_of_the_hub_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([{"question": "1?", "answer": None}, {"question": "2?", "answer": [1, 2]}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
    assert [example.answer for example in load_prompts("owner/name")] == [None, "1, 2"]
    with pytest.raises(ValueError, match=r"1 of 2 rows cannot be used: owner/name/train/0: column 'answer' holds None"):
        load_prompts("owner/name", need_answers=True)
