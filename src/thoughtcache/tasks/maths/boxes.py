r"""Finds the last `\boxed{...}` of a text.

A box is `\boxed`, `\fbox` or `\framebox`, then perhaps spaces, then a group in braces or, as TeX allows, one word
without braces (`\boxed 7`). A box inside a box belongs to the outer one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BOX = r"\boxed{"
MAX_ANSWER_CHARACTERS = 1000
"""What is longer is no final answer, and is refused before it is read."""

COMMAND = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s{0,20}")
WORD = re.compile(r"[^\s{}$\\,;]{1,100}")
INNER = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
NUM_LOOKED_AT = 50
"""Boxes from the end that may enclose the last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """The last box of a text.

    Attributes:
        content: what stands inside, without outer spaces; None if the box does not close.
        too_long: it does not close within `MAX_ANSWER_CHARACTERS` although more text follows.
    """

    content: str | None
    too_long: bool = False


def last_box(text: str) -> Box | None:
    """The last box, closed or not; None without a box."""
    starts = list(COMMAND.finditer(text))
    if not starts:
        return None
    found, end = _box(text, starts[-1].end())
    if found.content is None:
        return found
    for earlier in starts[-2 : -NUM_LOOKED_AT - 2 : -1]:
        outer, outer_end = _box(text, earlier.end())
        if outer.content is not None and outer_end > end:
            found, end = Box(content=INNER.sub("", outer.content).strip()), outer_end
    return found


def last_boxed(text: str) -> str | None:
    r"""Content of the last box; None if there is none, or if the last one does not close within the bound."""
    box = last_box(text)
    return None if box is None else box.content


def _box(text: str, start: int) -> tuple[Box, int]:
    if text[start : start + 1] != "{":
        word = WORD.match(text, start)
        return (Box(content=None), start) if word is None else (Box(content=word[0].rstrip(".")), word.end())
    depth = 0
    limit = start + MAX_ANSWER_CHARACTERS + 2
    for index in range(start, min(len(text), limit)):
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return Box(content=text[start + 1 : index].strip()), index
    return Box(content=None, too_long=len(text) >= limit), start
