r"""Checks that an answer can be equal to a reference answer; this happens before training, not during it.

A reference that cannot be read as mathematics is kept if its braces close: some matrices of MATH are such, and equal
text is equal. Not covered: whether it is the right answer.
"""

from __future__ import annotations

from thoughtcache.tasks.data.columns import is_unicode
from thoughtcache.tasks.maths.answer_types import read_reference
from thoughtcache.tasks.maths.boxes import BOX, MAX_ANSWER_CHARACTERS, last_boxed


def reference_fault(answer: str | None, answer_type: str = "auto") -> str | None:
    r"""Why no answer can be equal to this one, as a clause; None if one can."""
    if answer is None:
        return "in which no final answer was found"
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return f"an answer of {len(answer)} characters, allowed: 1 to {MAX_ANSWER_CHARACTERS}"
    if not is_unicode(answer):
        return "with half of a surrogate pair, which is no text"
    if last_boxed(f"{BOX}{answer}}}") != answer:
        return "whose braces do not close, so that no answer can be equal"
    try:
        read_reference(answer, answer_type)
    except ValueError as error:
        return f"which is no answer of the declared type ({error})"
    return None
