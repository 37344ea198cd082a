r"""Finds the final answer in a completion.

    find_answer(r"<think>\boxed{3}?</think> So \boxed{4}.").text         # "4"
    find_answer(r"\boxed{3}, or rather \boxed{4").reason                 # "unclosed_box"

The thought does not count. In what follows it the last box is the answer; if that box does not close, there is none.
Without any box the answer is what follows the last `####` or "the answer is", or the last formula, or the last number;
a text of one short line is an answer as it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from thoughtcache.tasks.maths.boxes import MAX_ANSWER_CHARACTERS, last_box

MAX_TAIL_CHARACTERS = 2000
MAX_BARE_CHARACTERS = 60
"""A completion of at most so many characters in one line may be an answer without any words around it."""

END_OF_THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
OPEN_THOUGHT = re.compile(r"\s*<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
MARK = re.compile(r"####[ \t]*([^\n]+)")
ANCHOR = re.compile(
    r"(?:answers?|result|solution)\b[^\S\n]{0,3}(?:is|are|:|=|\*\*)[*:\s]{0,5}(.{1,200}?)"
    r"(?=\.?\s*(?:\n|$)|[.;]\s|,\s(?:so|since|because|which|and\sthe)\b|\.?\*\*)",
    re.IGNORECASE,
)
FORMULA = re.compile(r"\$\$?([^$\n]{1,300})\$\$?|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]")
NUMBER = re.compile(
    r"(?<![\w.])[+\u2212-]?\\?\$?\d{1,400}(?:,\d{3}){0,20}(?:\.\d{1,400})?(?:[eE][+-]?\d{1,6})?"
    r"(?:/\d{1,400})?\s?\\?%?"
)
WORDS = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a completion gives as its answer.

    Attributes:
        text: the answer as it is written; None if there is none.
        reason: why there is none (`verdict.py`); "" if there is one.
    """

    text: str | None
    reason: str = ""


def find_answer(completion: str) -> Found:
    """The final answer of a completion, boxed or not."""
    text = after_thought(completion)
    box = last_box(text)
    if box is None:
        answer = _unboxed(text[-MAX_TAIL_CHARACTERS:])
        return Found(text=answer) if answer else Found(text=None, reason="no_answer")
    if box.content is None:
        return Found(text=None, reason="too_long" if box.too_long else "unclosed_box")
    if len(box.content) > MAX_ANSWER_CHARACTERS:
        return Found(text=None, reason="too_long")
    return Found(text=box.content) if box.content else Found(text=None, reason="no_answer")


def after_thought(completion: str) -> str:
    """What follows the thought; everything where no thought is marked, nothing where it does not end."""
    ends = list(END_OF_THOUGHT.finditer(completion))
    if ends:
        return completion[ends[-1].end() :]
    return "" if OPEN_THOUGHT.match(completion) else completion


def _unboxed(text: str) -> str | None:
    """The answer of a text without a box; None if nothing in it looks like one."""
    if marked := MARK.findall(text):
        return _clean(marked[-1])
    bare = text.strip()
    if anchored := ANCHOR.findall(text):
        return _clean(_formula(anchored[-1]) or anchored[-1])
    if 0 < len(bare) <= MAX_BARE_CHARACTERS and "\n" not in bare and len(WORDS.findall(bare)) <= 2:
        return bare
    return _formula(text) or _last_number(text)


def _formula(text: str) -> str | None:
    formulas = FORMULA.findall(text)
    return next((part.strip() for part in formulas[-1] if part.strip()), None) if formulas else None


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return numbers[-1].strip() if numbers else None


def _clean(text: str) -> str | None:
    return text.strip().strip("*").strip() or None
