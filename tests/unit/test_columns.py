"""Which columns are the question and the answer, found in all rows, and what the final answer is inside them."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from thoughtcache.tasks.data.datasets import load_prompts
from thoughtcache.tasks.data.final_answer import answer_text, final_answer
from thoughtcache.tasks.example import Example

USER = {"role": "user", "content": "2+2?"}
WORKED = {"role": "assistant", "content": "It is \\boxed{4}."}


def load(folder: Path, *rows: dict[str, Any], **options: Any) -> list[Example]:
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_prompts(str(file), **options)


def answers(examples: list[Example]) -> list[str | None]:
    return [example.answer for example in examples]


@pytest.mark.parametrize("first", [{}, {"answer": None}, {"answer": ""}, {"answer": float("nan")}])
def test_a_first_row_without_answer_hides_no_other(tmp_path: Path, first: dict[str, Any]) -> None:
    rows = ({"question": "1?", **first}, {"question": "2?", "answer": "4"}, {"question": "3?", "answer": 9})
    assert answers(load(tmp_path, *rows)) == [None, "4", "9"]
    assert answers(load(tmp_path, *rows, answer_column="answer")) == [None, "4", "9"]


def test_a_column_that_is_empty_everywhere_hides_no_other(tmp_path: Path) -> None:
    rows = [
        {"prompt": None, "question": f"{row}?", "answer": None, "solution": f"so \\boxed{{{row}}}"} for row in (1, 2)
    ]
    examples = load(tmp_path, *rows)
    assert [example.prompt[0]["content"] for example in examples] == ["1?", "2?"]
    assert answers(examples) == ["1", "2"]


def test_capitals_and_spaces_in_names_do_not_matter(tmp_path: Path) -> None:
    (example,) = load(tmp_path, {" Problem": "1?", "Reward_Model": {"Ground_Truth ": "7"}})
    assert (example.prompt[0]["content"], example.answer) == ("1?", "7")
    (example,) = load(tmp_path, {"Text": "1?", "GOLD": "7"}, prompt_column="text", answer_column="gold")
    assert (example.prompt[0]["content"], example.answer) == ("1?", "7")


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"messages": [USER, WORKED]}, [USER], "4"),
        ({"messages": [USER]}, [USER], None),
        ({"messages": [USER, WORKED], "answer": "5"}, [USER], "5"),
        ({"problem": "1+1?", "messages": [USER, WORKED]}, [{"role": "user", "content": "1+1?"}], "4"),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "2+2?"},
                    {"from": "gpt", "value": "\\boxed{4}"},
                ]
            },
            [{"role": "system", "content": "Be brief."}, USER],
            "4",
        ),
        ({"messages": [USER, WORKED, USER, {"role": "assistant", "content": "four"}]}, [USER, WORKED, USER], "four"),
        ({"messages": [USER, {"role": "assistant", "content": "It is four"}]}, [USER], None),
        ({"problem": "2+2?", "solution": "4"}, [USER], "4"),
        ({"problem": "2+2?", "solution": "$\\frac{8}{2}$"}, [USER], "\\frac{8}{2}"),
        ({"problem": "2+2?", "solution": "It is 4"}, [USER], None),
        ({"problem": "2+2?", "solution": 4}, [USER], "4"),
    ],
)
def test_conversations_and_solutions(
    tmp_path: Path, row: dict[str, Any], prompt: list[dict[str, str]], answer: str | None
) -> None:
    (example,) = load(tmp_path, row)
    assert (example.prompt, example.answer) == (prompt, answer)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER, WORKED]},
        {"messages": [WORKED]},
        {"messages": "2+2?"},
        {"messages": [{"role": "tool", "content": "4"}]},
        {"conversations": [{"from": "human", "value": None}]},
        {"prompt": [{"role": "user", "content": " "}]},
        {"prompt": 4},
        {"prompt": {"text": "2+2?"}},
    ],
)
def test_prompts_that_are_no_question(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a/0: column '(prompt|messages|conversations)' holds .*ends with the user's"):
        load(tmp_path, row)


@pytest.mark.parametrize(
    ("value", "column", "expected"),
    [
        ("so\n#### 1,072", "answer", "1072"),
        ("#### $1,234,567.5", "answer", "$1234567.5"),
        ("#### -1,072", "answer", "-1072"),
        ("#### (1,2)", "answer", "(1,2)"),
        ("#### (1,200)", "answer", "(1,200)"),
        ("#### 1,2", "answer", "1,2"),
        ("#### 1,0725", "answer", "1,0725"),
        ("#### 1,072,10", "answer", "1,072,10"),
        ("#### 0.5,100", "answer", "0.5,100"),
        ("#### 1,072, 3", "answer", "1072, 3"),
        ("#### 10,000 dollars", "answer", "10000 dollars"),
        ("#### Step 1\nwork\n#### Conclusion\nIt is \\boxed{7}.", "solution", "7"),
        ("It is \\boxed{7}.\n#### Remark\nIt is prime.", "solution", "7"),
        ("#### Step 1\nThe answer is 7.", "solution", None),
        ("", "solution", None),
        ("\\boxed{}", "solution", None),
        ("x + 1", "Solution", "x + 1"),
        ("Evelyn", "solution", "Evelyn"),
        (["69", None], "final_answer", None),
        (["$69$", 84], "final_answer", "69, 84"),
        ({"a": 1}, "answer", None),
        (b"72", "answer", None),
        (float("inf"), "answer", None),
    ],
)
def test_final_answer(value: object, column: str, expected: str | None) -> None:
    assert final_answer(value, column) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (72, "72"),
        (True, "True"),
        (72.0, "72"),
        (-0.5, "-0.5"),
        (1e22, "1" + "0" * 22),
        (Decimal("27.00"), "27"),
        (Decimal("0.10"), "0.10"),
        (Fraction(1, 2), "1/2"),
        (" 7 ", "7"),
        ([1, 2.0], "1, 2"),
        (None, None),
        (float("nan"), None),
        (Decimal("NaN"), None),
        ([], None),
        ([1, None], None),
        ({"a": 1}, None),
    ],
)
def test_answer_text(value: object, expected: str | None) -> None:
    assert answer_text(value) == expected
