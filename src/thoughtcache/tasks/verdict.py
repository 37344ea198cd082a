"""The verdict on one completion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The judgement whether a completion answers its question.

    Attributes:
        correct: equal to the reference.
        parsed: an answer was found and could be read; False for a completion without answer and for broken LaTeX.
        timed_out: the comparison exceeded its time or memory and was ended; `correct` is then False.
        extracted: the text that was taken for the answer, readable or not; None if nothing was.
    """

    correct: bool
    parsed: bool = True
    timed_out: bool = False
    extracted: str | None = None
