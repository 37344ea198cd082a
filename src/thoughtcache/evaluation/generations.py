"""The answers of an evaluation, which are kept as lines of JSON (`record_file.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from thoughtcache.evaluation.record_file import Record, read_records


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation(Record):
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


def read_generations(path: Path) -> list[Generation]:
    """The answers in a file; see `read_records`."""
    return read_records(path, Generation)


def by_question(generations: Iterable[Generation]) -> dict[str, list[Generation]]:
    """The answers to each question in the order of their numbers; questions as they come."""
    found: dict[str, list[Generation]] = {}
    for generation in generations:
        found.setdefault(generation.question, []).append(generation)
    return {question: sorted(own, key=lambda one: one.sample) for question, own in found.items()}
