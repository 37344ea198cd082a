"""The public maths data sets themselves, where they are at hand.

The folder is `THOUGHTCACHE_DATA`, or `shared/data` next to the repository; it is not part of the repository.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.answers.sweep import SUITES, sweep

from thoughtcache.tasks.data.datasets import load_prompts
from thoughtcache.tasks.maths.answers import check_math_answer

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("THOUGHTCACHE_DATA") or REPOSITORY.parent / "shared" / "data")

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not DATA.is_dir(), reason="set THOUGHTCACHE_DATA to the folder of the public data sets"),
]

# name, split, rows, answer of the first row
DATA_SETS = [
    ("aime24", "test", 30, "204"),
    ("aime25", "test", 30, "237"),
    ("amc23", "test", 40, "27"),
    ("dapo_math_17k", "train", 17917, "34"),
    ("gsm8k", "train", 7473, "72"),
    ("gsm8k", "test", 1319, "18"),
    ("math500", "test", 500, "216"),
    ("minerva_math", "test", 272, "1.6"),
    ("olympiadbench", "test", 675, "2"),
]


@pytest.mark.parametrize(("name", "split", "num_rows", "first_answer"), DATA_SETS)
def test_all_rows_have_a_question_and_an_answer(name: str, split: str, num_rows: int, first_answer: str) -> None:
    examples = load_prompts(str(DATA / name), split=split, need_answers=True)
    assert len(examples) == num_rows
    assert all(example.answer for example in examples)
    assert len({example.identifier for example in examples}) == num_rows
    assert {message["role"] for example in examples for message in example.prompt} == {"user"}
    assert examples[0].answer == first_answer


@pytest.mark.parametrize("name", SUITES)
def test_forms_of_references_are_right_and_neighbours_wrong(name: str) -> None:
    """The first references of each suite; `python -m benchmarks.answers.sweep` takes them all."""
    answer_type = SUITES[name]
    examples = load_prompts(str(DATA / name), split="test", need_answers=True, answer_type=answer_type, limit=60)
    count = sweep([example.answer or "" for example in examples], answer_type)
    assert count.fewest >= 8
    assert len(count.refused) <= 0.002 * count.right, count.refused
    assert len(count.accepted) <= 0.002 * count.wrong, count.accepted


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, split, _, _ in DATA_SETS])
def test_a_reference_equals_itself_and_not_its_neighbour(name: str, split: str) -> None:
    references = [example.answer or "" for example in load_prompts(str(DATA / name), split=split, limit=25)]
    for own, other in pairwise(references):
        assert check_math_answer(rf"\boxed{{{own}}}", own).correct, own
        if own != other:
            assert not check_math_answer(rf"\boxed{{{own}}}", other).correct, (own, other)
