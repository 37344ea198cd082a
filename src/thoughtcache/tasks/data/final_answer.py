r"""The final answer in what a data set has for one.

Known forms: the answer itself as text or number (also `27.0`), a list of answers that belong together (OlympiadBench),
`... #### 72` (GSM8K), a worked solution with `\boxed{}` (MATH, Minerva), a conversation that ends in one.
"""

from __future__ import annotations

import math
import numbers
import re
from decimal import Decimal

from thoughtcache.tasks.data.conversation import is_conversation_column, parse_messages, solution_of
from thoughtcache.tasks.maths.boxes import BOX, last_boxed
from thoughtcache.tasks.maths.structure import THOUSANDS

DOLLAR = re.compile(r"(?<!\\)\$")
WORD = re.compile(r"[^\W\d_]{2}")
LATEX_WORDS = re.compile(r"\\(?:text|mathrm|mathbf|operatorname)\{[^{}]*\}|\\[A-Za-z]+")


def final_answer(value: object, column: str) -> str | None:
    r"""The answer alone, as a string; None if the row has none.

    A solution text (column `solution`) has a final answer if it has a `\boxed{}` or `####`, or if it is nothing but an
    answer: one line without words, such as `34`.
    """
    if is_conversation_column(column):
        messages = parse_messages(value)
        solution = solution_of(messages) if messages else None
        return None if solution is None else _answer_in_text(solution, worked=True)
    if isinstance(value, list):
        parts = [_part(item, final_answer(item, column)) for item in value]
        known = [part for part in parts if part is not None]
        return ", ".join(known) if known and len(known) == len(parts) else None
    if isinstance(value, str):
        return _answer_in_text(value, worked=column.rpartition(".")[2].strip().casefold() == "solution")
    return answer_text(value)


def answer_text(value: object) -> str | None:
    """A reference as text: text itself, a number without a needless fraction (`72.0` is `72`), a list with commas.

    A list in a list is a tuple: `[[1, 2], [3, 4]]` is `(1, 2), (3, 4)`.

    None for what is no answer: None, blank text, NaN, infinity, empty lists and lists with such an element, and
    whatever is neither text nor a number.
    """
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool | numbers.Integral):
        return str(value)
    if isinstance(value, numbers.Real | Decimal):
        if not math.isfinite(value):
            return None
        whole = math.trunc(value)
        return str(whole) if value == whole else str(value)
    if isinstance(value, list | tuple):
        parts = [_part(item, answer_text(item)) for item in value]
        known = [part for part in parts if part is not None]
        return ", ".join(known) if known and len(known) == len(parts) else None
    return None


def _part(item: object, text: str | None) -> str | None:
    """A part of a list; several numbers that are one part stand in parentheses."""
    return f"({text})" if text is not None and isinstance(item, list | tuple) and len(item) > 1 else text


def _answer_in_text(text: str, *, worked: bool) -> str | None:
    before, mark, after = text.strip().rpartition("####")
    boxed = last_boxed(after)
    if boxed is None and mark and "\n" not in after.strip():
        return _without_thousands(after.strip()) or None
    boxed = last_boxed(before) if boxed is None else boxed
    if boxed is not None:
        return boxed or None
    if mark or (worked and _is_prose(after)):
        return None  # a heading, or a solution that does not say which part of it is the answer
    return DOLLAR.sub("", after).strip() or None


def _is_prose(text: str) -> bool:
    """Several lines, or words with spaces between: `34`, `x + 1` and `Evelyn` are answers, `It is 34` is prose."""
    line = LATEX_WORDS.sub("", text.strip())
    return "\n" in line or BOX in text or (WORD.search(line) is not None and " " in line)


def _without_thousands(answer: str) -> str:
    """`1,072` is one number, `(1,072)` and `{1,200}` may be two."""
    if any(bracket in answer for bracket in "([{"):
        return answer
    return THOUSANDS.sub(lambda number: number[0].replace(",", ""), answer)
