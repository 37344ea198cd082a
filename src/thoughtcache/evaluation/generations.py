"""The answers of an evaluation as lines of JSON, written one by one, so that a run that was killed loses none of them.

A line that a kill cut short is the last one and has no end; it is dropped, and its answer is sampled again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One answer with its verdict.

    Attributes:
        suite: name of the suite.
        question: identifier of the question, `math500/17`.
        sample: number of the answer among those to its question, from 0.
        seed: seed of its random numbers.
        text: the answer, special tokens left out.
        num_tokens: tokens that were sampled, the token that ended it included.
        finish_reason: "stop", or "length" if it was cut.
        evictions: [before_token, num_tokens] of every eviction: what left before which thought token.
        correct: whether it is right.
        reason: why, a key of `tasks.verdict.REASONS`.
        extracted: what was taken for the final answer; None if nothing was.
        reference: the right answer.
        kind: how they were compared, a key of `tasks.example.CHECKS`.
    """

    suite: str
    question: str
    sample: int
    seed: int
    text: str
    num_tokens: int
    finish_reason: str
    evictions: list[list[int]]
    correct: bool
    reason: str
    extracted: str | None
    reference: str
    kind: str

    @property
    def key(self) -> tuple[str, int]:
        """Question and number of the sample, of which a run has one each."""
        return self.question, self.sample


FIELDS = tuple(field.name for field in dataclasses.fields(Generation))


def read_generations(path: Path) -> list[Generation]:
    """The answers in a file, each once; a last line that is not whole is left out.

    Raises:
        ValueError: if another line than the last is damaged.
    """
    return _read(path)[0]


class GenerationFile:
    """A file that answers are added to; it must not be written to by anybody else.

    Args:
        path: the file, which may exist; what is behind its last whole line is cut off.

    Attributes:
        found: the answers that were there.

    Raises:
        ValueError: as `read_generations`.
    """

    def __init__(self, path: Path) -> None:
        self.found, num_bytes = _read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is with the operating system when `add` returns, and survives a kill of this process.
        self._file = path.open("ab", buffering=0)
        self._file.truncate(num_bytes)

    def add(self, generation: Generation) -> None:
        """Write one answer."""
        line = json.dumps(dataclasses.asdict(generation), ensure_ascii=True).encode() + b"\n"
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]

    def __enter__(self) -> GenerationFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def by_question(generations: Iterable[Generation]) -> dict[str, list[Generation]]:
    """The answers to each question in the order of their numbers; questions as they come."""
    found: dict[str, list[Generation]] = {}
    for generation in generations:
        found.setdefault(generation.question, []).append(generation)
    return {question: sorted(own, key=lambda one: one.sample) for question, own in found.items()}


def _read(path: Path) -> tuple[list[Generation], int]:
    """The answers, and the bytes of the file that hold them."""
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    found: dict[tuple[str, int], Generation] = {}
    for number, line in enumerate(data[:end].split(b"\n")[:-1], start=1):
        try:
            generation = _generation(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"line {number} of {path} is damaged ({error}); delete the line, and its answer is sampled again"
            ) from error
        found.setdefault(generation.key, generation)
    return list(found.values()), end


def _generation(values: Any) -> Generation:
    if not isinstance(values, dict) or set(values) != set(FIELDS):
        raise ValueError(f"it is no object with {', '.join(FIELDS)}")
    return Generation(**values)
