"""Rows that cannot be used are all named before anything is loaded, and refused or left out."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.text_model import save_text_model

import thoughtcache as tc
from thoughtcache.recipes import grpo_phase
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.tasks.data.bad_rows import BadRow, settle_bad_rows
from thoughtcache.tasks.data.datasets import load_prompts

GOOD = {"question": "w3 w4", "answer": "5"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"question": "w5", "answer": None}, "column 'answer' holds None, in which no final answer was found"),
    ({"question": "w5"}, "column 'answer' holds None"),
    ({"question": "w5", "answer": "7" * 1199}, "an answer of 1199 characters, allowed: 1 to 1000"),
    ({"question": "w5", "answer": "\\frac{1}{"}, "whose braces do not close"),
    ({"question": "w5", "answer": "\\boxed{}"}, "no final answer"),
    ({"question": "w5", "answer": {"value": 7}}, "no final answer"),
    ({"question": "w5", "answer": "\ud800"}, "half of a surrogate pair"),
    ({"question": "", "answer": "5"}, "column 'question' holds ''"),
    ({"question": None, "answer": "5"}, "column 'question' holds None"),
    ({"question": 7, "answer": "5"}, "column 'question' holds 7"),
    ({"answer": "5"}, "column 'question' holds None"),
]


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_each_kind_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    source = write(tmp_path, [GOOD, row])
    pattern = rf"1 of 2 rows cannot be used: line 2, {tmp_path.name}/a/1: .*{re.escape(reason)}.*--bad-rows drop"
    with pytest.raises(ValueError, match=pattern):
        load_prompts(source, need_answers=True)
    told: list[str] = []
    kept = load_prompts(source, need_answers=True, bad_rows="drop", report=told.append)
    assert [example.identifier for example in kept] == [f"{tmp_path.name}/a/0"]
    (sentence,) = told
    assert sentence.startswith(f"left out 1 of 2 rows: line 2, {tmp_path.name}/a/1:")
    assert reason in sentence


def test_without_need_of_answers_only_prompts_count(tmp_path: Path) -> None:
    answers = [example.answer for example in load_prompts(write(tmp_path, [GOOD, *(row for row, _ in BAD[:4])]))]
    assert answers == ["5", None, None, "7" * 1199, "\\frac{1}{"]


@pytest.mark.parametrize("answer", ["\\begin{pmatrix}-7\\16\\end{pmatrix}", "E_{1},E_{2}", "∞", "\\{1\\}", "7" * 1000])
def test_references_that_can_be_equal_to_text_stay(tmp_path: Path, answer: str) -> None:
    (example,) = load_prompts(write(tmp_path, [{"question": "w5", "answer": answer}]), need_answers=True)
    assert example.answer == answer


def test_the_first_three_are_named_and_all_counted(tmp_path: Path) -> None:
    rows = [GOOD, *(row for row, _ in BAD), GOOD]
    with pytest.raises(ValueError, match=r"^11 of 13 rows .*line 2, .*line 3, .*line 4, .*; and 8 more; ") as refused:
        load_prompts(write(tmp_path, rows), need_answers=True)
    assert "line 5" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_rows_that_cannot_be_read_can_be_dropped_too(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("question,answer\nw3,4\nw5, w6,7\nw8,9\n")
    told: list[str] = []
    kept = load_prompts(str(file), bad_rows="drop", report=told.append)
    assert [example.identifier for example in kept] == [f"{tmp_path.name}/a/0", f"{tmp_path.name}/a/2"]
    assert "line 3, row 1 of 'a.csv' has 3 fields" in told[0]
    with pytest.warns(UserWarning, match="left out 1 of 3 rows"):
        load_prompts(str(file), bad_rows="drop")


def test_a_limit_counts_dropped_rows(tmp_path: Path) -> None:
    """A limited run sees the first rows of the whole run."""
    source = write(tmp_path, [GOOD, BAD[0][0], GOOD, BAD[1][0]])
    kept = load_prompts(source, need_answers=True, limit=3, bad_rows="drop", report=lambda sentence: None)
    assert [example.identifier.rpartition("/")[2] for example in kept] == ["0", "2"]


@pytest.mark.parametrize("policy", ["refuse", "drop"])
def test_nothing_usable_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match=r"none of the 1 rows can be used: row 0 is empty; .*--prompt-column"):
        settle_bad_rows([BadRow(place="row 0", reason="is empty")], 1, policy, print)


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="bad_rows='skip'"):
        settle_bad_rows([], 1, "skip", print)


def run_config(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> RunConfig:
    settings = {
        "model": str(folder / "model"),
        "dataset": write(folder, rows),
        "output_dir": str(folder / "run"),
        "max_new_tokens": 6,
        "distill_steps": 0,
        "grpo_steps": 3,
        "group_size": 2,
        "grpo_batch_size": 2,
    }
    return RunConfig(**{**settings, **changes})


def test_a_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """The model of this run does not exist."""
    thought = tc.ThoughtConfig(r=3, num_global_tokens=5, window=4)
    with pytest.raises(ValueError, match=r"1 of 2 rows cannot be used: line 2, .*1199 characters"):
        run_real_model(run_config(tmp_path, [GOOD, BAD[2][0]]), thought, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_grpo_runs_to_its_end_without_the_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps see every row at least once, so a row that is not dropped ends the run."""
    save_text_model(tmp_path / "model")
    console = Console(record=True, width=500, file=StringIO())
    rows: list[dict[str, Any]] = []
    train = grpo_phase.train_grpo

    def watched(model: Any, tokenizer: Any, given: list[dict[str, Any]], *arguments: Any, **settings: Any) -> Any:
        rows.extend(given)
        return train(model, tokenizer, given, *arguments, **settings)

    monkeypatch.setattr(grpo_phase, "train_grpo", watched)
    config = run_config(tmp_path, [GOOD, BAD[0][0], {"question": "w7", "answer": 9}], bad_rows="drop")
    results = run_real_model(config, tc.ThoughtConfig(r=3, num_global_tokens=5, window=4), console)
    assert [row["answer"] for row in rows] == ["5", "9"]
    assert [step for step, _ in results["phases"]["grpo"]["rewards"]] == [1, 2, 3]
    assert "left out 1 of 3 rows: line 2" in console.export_text()


def test_a_template_that_refuses_a_role_is_a_bad_row(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "model")
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    user = {"role": "user", "content": "w3 w4"}
    rows = [
        {"prompt": [user], "answer": "5"},
        {"prompt": [{"role": "system", "content": "w5"}, user], "answer": "5"},
    ]
    config = run_config(tmp_path, rows, grpo_steps=1)
    thought = tc.ThoughtConfig(r=3, num_global_tokens=5, window=4)
    pattern = r"1 of 2 rows .*/a/1: the chat template refuses its messages \(System role not supported\)"
    with pytest.raises(ValueError, match=pattern):
        run_real_model(config, thought, Console(quiet=True))
    assert not (tmp_path / "run").exists()
    config = run_config(tmp_path, rows, grpo_steps=1, bad_rows="drop")
    assert set(run_real_model(config, thought, Console(quiet=True))["phases"]) == {"grpo"}
