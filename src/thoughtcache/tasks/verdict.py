"""The verdict on one completion."""

from __future__ import annotations

from dataclasses import dataclass

REASONS = {
    "literal": "right: the same text but for its appearance",
    "exact": "right: the same value or parts",
    "rounded": "right: the same number to the digits that are shown",
    "math_verify": "right: math-verify says so, and nothing else could tell",
    "different": "wrong: another value",
    "other_form": "wrong: other brackets, base or unit, or another number of parts",
    "no_answer": "wrong: no answer was found",
    "unclosed_box": "wrong: the last box does not close",
    "too_long": "wrong: the answer is too long for a final answer",
    "too_large": "wrong: refused, because it would take too long to compute",
    "unreadable": "wrong: the answer cannot be read as an answer of its type",
    "timed_out": "wrong: the comparison exceeded its time or memory and was ended",
}
"""Why a verdict is what it is."""

RIGHT = frozenset(("literal", "exact", "rounded", "math_verify"))
NOT_PARSED = frozenset(("no_answer", "unclosed_box", "too_long", "too_large", "unreadable", "timed_out"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The judgement whether a completion answers its question.

    Attributes:
        correct: equal to the reference.
        parsed: an answer was found and could be read; False for a completion without answer and for broken LaTeX.
        timed_out: the comparison exceeded its time or memory and was ended; `correct` is then False.
        extracted: the text that was taken for the answer, readable or not; None if nothing was.
        reason: why, a key of `REASONS`; "" from a check that does not say.
    """

    correct: bool
    parsed: bool = True
    timed_out: bool = False
    extracted: str | None = None
    reason: str = ""

    @classmethod
    def of(cls, reason: str, extracted: str | None) -> Verdict:
        """The verdict that follows from a reason."""
        return cls(
            correct=reason in RIGHT,
            parsed=reason not in NOT_PARSED,
            timed_out=reason == "timed_out",
            extracted=extracted,
            reason=reason,
        )
