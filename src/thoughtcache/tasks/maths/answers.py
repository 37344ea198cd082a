r"""Decides whether the final answer of a completion equals the reference, and says why.

    check_math_answer(r"... so \boxed{\frac{1}{2}}", "0.5").correct       # True
    check_math_answer(r"... \boxed{3", "3").reason                        # "unclosed_box"

    extraction.py     the answer: the last box after the thought
    limits.py         too long or too deep to be read
    answer_types.py   what the reference is, and the comparison of that kind: as text, exactly, or to its digits
    workers/          math-verify in processes of their own, for formulas that are not known here (integrals, sums)

Comparisons are cached. Any thread may call. Not covered: proofs, partial credit, conversion of units.
"""

from __future__ import annotations

from functools import lru_cache

from thoughtcache.tasks.maths.answer_types import Reference, read_reference, same_answer
from thoughtcache.tasks.maths.boxes import MAX_ANSWER_CHARACTERS, last_boxed
from thoughtcache.tasks.maths.expressions.tokens import TooLargeError, UnreadableError
from thoughtcache.tasks.maths.extraction import find_answer
from thoughtcache.tasks.maths.latex import tidy
from thoughtcache.tasks.maths.limits import is_for_algebra, refusal
from thoughtcache.tasks.maths.workers.pool import POOL
from thoughtcache.tasks.verdict import Verdict

NUM_CACHED = 16384
ALGEBRA = frozenset(("auto", "expression", "number", "equation", "list", "set", "tuple", "interval", "matrix"))
"""Types whose formulas math-verify may compare."""


class _TimedOutError(Exception):
    """The comparison exceeded its bounds; an exception, so that it is not cached: the machine may have been busy."""


def check_math_answer(
    completion: str, reference: str, timeout_seconds: float = 5.0, *, answer_type: str = "auto"
) -> Verdict:
    r"""Compare the final answer of `completion` with `reference` (LaTeX or plain, with or without `\boxed{}`).

    Args:
        completion: what the model wrote; a malformed one is a result, never an exception.
        reference: the right answer.
        timeout_seconds: wall-clock time of math-verify, if it is asked at all.
        answer_type: how it is compared, one of `ANSWER_TYPES` (docs/answers.md).

    Returns:
        Whether they are equal, what was taken for the answer, and the reason.

    Raises:
        ValueError: if the reference is empty, too long or none of its type, or the time is not positive.
        RuntimeError: if the worker process fails for a reason that is not the answer's fault.
    """
    if timeout_seconds <= 0:
        raise ValueError(f"timeout_seconds is {timeout_seconds}, allowed: above 0; the default is 5")
    expected = last_boxed(reference)
    expected = reference.strip() if expected is None else expected
    if not 0 < len(expected) <= MAX_ANSWER_CHARACTERS:
        raise ValueError(
            f"reference is {len(expected)} characters long, allowed: 1 to {MAX_ANSWER_CHARACTERS}; "
            "drop examples without a short final answer"
        )
    read_reference(expected, answer_type)  # refused before the answer is looked at
    found = find_answer(completion)
    if found.text is None:
        return Verdict.of(found.reason, None)
    reason = refusal(found.text) or _reason(found.text, expected, answer_type)
    if reason == "unknown":
        try:
            reason = _by_algebra(tidy(found.text), tidy(expected), timeout_seconds)
        except _TimedOutError:
            reason = "timed_out"
    return Verdict.of(reason, found.text)


@lru_cache(maxsize=NUM_CACHED)
def _reason(answer: str, reference: str, answer_type: str) -> str:
    """The reason of the verdict; "unknown" where only computer algebra can tell."""
    expected = read_reference(reference, answer_type)
    try:
        return same_answer(expected, answer, answer_type)
    except TooLargeError:
        return "too_large"
    except UnreadableError:
        return "unknown" if _may_ask(expected, answer, answer_type) else "unreadable"


def _may_ask(expected: Reference, answer: str, answer_type: str) -> bool:
    return answer_type in ALGEBRA and expected.structure is not None and is_for_algebra(expected.text, tidy(answer))


@lru_cache(maxsize=NUM_CACHED)
def _by_algebra(answer: str, reference: str, timeout_seconds: float) -> str:
    reply = POOL.ask({"answer": answer, "reference": reference}, timeout_seconds)
    if reply is None:
        raise _TimedOutError
    if not reply["parsed"]:
        return "unreadable"
    return "math_verify" if reply["correct"] else "different"
