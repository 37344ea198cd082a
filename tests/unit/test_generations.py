"""The file of answers: whatever a kill leaves of it, whole lines stay and the rest goes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from thoughtcache.evaluation.generations import Generation, by_question, read_generations
from thoughtcache.evaluation.record_file import RecordFile


def answers(count: int) -> list[Generation]:
    return [
        Generation(
            suite="s", question=f"s/{index // 2}", sample=index % 2, seed=2**42 - index, text="\u2028 é\nnew\r\u0000",
            num_tokens=5, finish_reason="stop", evictions=[[4, 1], [5, 1]], correct=bool(index % 3), reason="exact",
            extracted=None if index == 1 else "5", reference="5", kind="maths",
        )
        for index in range(count)
    ]  # fmt: skip


def write(path, generations):
    with RecordFile(path, Generation) as file:
        for generation in generations:
            file.add(generation)


def test_what_is_written_is_read(tmp_path):
    path, written = tmp_path / "new" / "g.jsonl", answers(5)
    write(path, written[:3])
    write(path, written[3:])
    assert read_generations(path) == written
    assert list(by_question(written[::-1])) == ["s/2", "s/1", "s/0"]
    assert [one.sample for one in by_question(written[::-1])["s/0"]] == [0, 1]
    assert json.loads(path.read_text().splitlines()[0])["evictions"] == [[4, 1], [5, 1]]


def test_a_file_cut_anywhere_goes_on_with_its_whole_lines(tmp_path):
    path, written = tmp_path / "g.jsonl", answers(3)
    write(path, written)
    data = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    for cut in {*range(0, len(data), 7), *ends, *(end - 1 for end in ends)}:
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert read_generations(path) == written[:whole]
        write(path, written[whole:])
        assert path.read_bytes() == data


def test_an_answer_counts_once_and_no_file_is_an_empty_one(tmp_path):
    path, (first, *_) = tmp_path / "g.jsonl", answers(1)
    assert read_generations(path) == []
    write(path, [first, dataclasses.replace(first, text="another")])
    assert read_generations(path) == [first]


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"suite": "s"}', b"\x00\x00"])
def test_a_damaged_line_that_is_not_the_last_is_named(tmp_path, line):
    path = tmp_path / "g.jsonl"
    write(path, answers(2))
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + line + b"\n" + second + b"\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is damaged .*delete the line"):
        read_generations(path)
