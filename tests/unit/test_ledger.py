"""The ledger: every line can be worked out again, and the answer is what the lines end in."""

from __future__ import annotations

import re

import pytest

from thoughtcache.tasks.example import check
from thoughtcache.tasks.ledger import HIGHEST, LARGEST_CHANGE, LOWEST, NAMES, sample_ledgers


@pytest.mark.parametrize("sizes", [{}, {"num_people": 16, "num_changes": 1}, {"num_people": 1, "num_changes": 5}])
def test_lines_can_be_worked_out_again(sizes):
    for problem in sample_ledgers(40, "train", 3, **sizes):
        told = problem.prompt.splitlines()[1:]
        *lines, last = problem.trace.splitlines()
        results = []
        for question, line in zip(told, lines, strict=True):
            name, amount = re.match(r"(\w+) starts with (\d+) coins", question).groups()
            amount = int(amount)
            for verb, change in re.findall(r"(finds|loses) (\d+)", question):
                moved = amount + (int(change) if verb == "finds" else -int(change))
                assert f"{amount} {'+' if verb == 'finds' else '-'} {change} = {moved}." in line
                assert 1 <= int(change) <= LARGEST_CHANGE
                amount = moved
                assert LOWEST <= amount <= HIGHEST
            assert line.startswith(f"{name} has ")
            assert line.endswith(f"So {name} has {amount} coins.")
            results.append((name, amount))
        assert len({name for name, _ in results} & set(NAMES)) == len(results)
        assert last == "# " + ", ".join(f"{name} {amount}" for name, amount in results)


def test_the_list_alone_is_judged():
    (problem,) = sample_ledgers(1, "test", 0)
    assert check(problem.example, problem.trace).correct
    assert check(problem.example, problem.trace + "<eos>").correct
    assert check(problem.example, "#" + problem.answer).correct
    assert not check(problem.example, problem.trace[:-1]).correct
    assert not check(problem.example, problem.trace.rpartition("#")[0]).parsed
    parts = problem.answer.split(", ")
    assert not check(problem.example, "#" + ", ".join([parts[1], parts[0], *parts[2:]])).correct


def test_splits_share_no_question():
    lists = {split: {p.prompt for p in sample_ledgers(30, split, 0)} for split in ("train", "val", "test")}
    assert not lists["train"] & lists["val"] | lists["val"] & lists["test"] | lists["train"] & lists["test"]
    assert sample_ledgers(3, "val", 1) == sample_ledgers(5, "val", 1)[:3]
    with pytest.raises(ValueError, match="split is 'dev'"):
        sample_ledgers(1, "dev", 0)
