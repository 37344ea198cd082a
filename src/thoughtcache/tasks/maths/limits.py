r"""Refuses cheaply what would cost computer algebra its whole time.

Measured with math-verify: towers of powers, factorials of large numbers, thousands of parentheses, hundreds of
fractions and megabytes of digits each use up any limit. An answer is therefore refused before it is read if it is long
or deep, and before it is handed to math-verify if it is not short and simple.
"""

from __future__ import annotations

import re

from thoughtcache.tasks.maths.boxes import MAX_ANSWER_CHARACTERS
from thoughtcache.tasks.maths.latex import tidy
from thoughtcache.tasks.maths.unicode_text import as_latex

MAX_NESTING = 50
MAX_ALGEBRA_CHARACTERS = 300
MAX_ALGEBRA_COMMANDS = 40
LARGE = re.compile(
    r"\d{16}|!|\^\s*\{?\s*-?\d{4}|\^\s*(?:\{[^{}]*|\w\s*)\^|\d{3,}\s*\}?\s*\^\s*\{?\s*-?\d{3}|_\s*\{[^{}]*_"
)
"""Long numbers, factorials, large exponents, powers in exponents, large powers of large numbers, nested indices."""

COMMAND = re.compile(r"\\[A-Za-z]")
WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{4,}|\\text")


def refusal(answer: str) -> str:
    """Why an answer is not read at all: "too_long", "too_large" or "".

    One sign of Unicode may be many of LaTeX, and brackets have several spellings: both are counted as they are read.
    """
    if len(answer) > MAX_ANSWER_CHARACTERS or len(as_latex(answer)) > MAX_ANSWER_CHARACTERS:
        return "too_long"
    return "too_large" if max(_nesting(answer), _nesting(tidy(answer))) > MAX_NESTING else ""


def _nesting(text: str) -> int:
    """How many brackets are open at most; one that closes nothing counts for nothing."""
    depth = deepest = 0
    for character in text:
        depth = max(0, depth + (character in "([{") - (character in ")]}"))
        deepest = max(deepest, depth)
    return deepest


def is_for_algebra(expected: str, given: str) -> bool:
    """Whether math-verify may compare two tidy texts.

    It takes any number out of a sentence, multiplies the letters of words, takes one side of an equation and drops what
    it does not know. So both must be formulas without words, with the same number of relations and commas, and one must
    have a command of LaTeX: what is unreadable without commands is no formula.
    """
    for text in (expected, given):
        if (
            len(text) > MAX_ALGEBRA_CHARACTERS
            or text.count("\\") > MAX_ALGEBRA_COMMANDS
            or text.count("(") > MAX_ALGEBRA_COMMANDS
        ):
            return False
        if LARGE.search(text) or WORD.search(text):
            return False
    if not given or not COMMAND.search(expected + given):
        return False
    return all(
        _outside_indices(expected, sign) == _outside_indices(given, sign) for sign in ("=", "<", ">", r"\\[lgn]e ", ",")
    )


def _outside_indices(text: str, pattern: str) -> int:
    """How often a pattern is found outside `_{...}`."""
    return len(re.findall(pattern, re.sub(r"_\s*\{[^{}]*\}", "", text)))
