"""Every regular expression of the answer check, on strings of 1000 characters on which careless ones take for ever."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import FrameType

import pytest

import thoughtcache.tasks.maths as maths
from thoughtcache.tasks.maths.boxes import MAX_ANSWER_CHARACTERS

LIMIT_SECONDS = 0.3
"""Processor time of one search; a search that is quadratic in 1000 characters takes a tenth of it."""

STARTS = ("", "1", "aa", r"\text{", "x_{", "the answer is ")
PIECES = (
    "a", "ab", "a ", "ab ", "a.", "a. ", "a'", "A", "1", "1,", "1,000", "1.", "1 ", "1a.", "0e", " ", "\t", "\n ", "'",
    "_", "_1", "{", "}", "{}", "{a}", "{{a}}", "(", ")", "(1)", "[", "|", "^", "^1", "^{1", r"^{\prime", r"\prime ",
    "$", "*", "**", "+", "-", ",", ", ", "/", ":", "=", "<", "&", "%", r"\text{",
    r"\text{a}", r"\text{a} ", r"\text{a}^2 ",
    r"\\", "\\", r"\,", "{,}", "x_1", "x_{a}", "x'", "d x/", r"\frac1", r"\frac{1}", r"\sqrt ", r"\begin{matrix}",
    "\\boxed", "\\boxed{", "sin", "or ", "thousand", "1thousand ", "base ", "cm/", "\u20ac", "result is ", "a. b, so ",
)  # fmt: skip
ENDS = ("", "1", "=5", "}", "@")


def patterns() -> dict[str, re.Pattern[str]]:
    """All of them by a name: those that modules keep, and those that are written where they are used."""
    found = {}
    for info in pkgutil.walk_packages(maths.__path__, "thoughtcache.tasks.maths."):
        module = importlib.import_module(info.name)
        short = info.name.removeprefix("thoughtcache.tasks.maths.")
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                found[f"{short}.{name}"] = value
        assert module.__file__ is not None
        for call in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args:
                owner, written = call.func.value, call.args[0]
                if isinstance(owner, ast.Name) and owner.id == "re" and isinstance(written, ast.Constant):
                    found[f"{short}:{call.lineno}"] = re.compile(str(written.value))
    return {name: pattern for pattern, name in {pattern: name for name, pattern in found.items()}.items()}


def texts() -> list[str]:
    """Long strings of one piece each, between different starts and ends."""
    made = []
    for start, piece, end in product(STARTS, PIECES, ENDS):
        middle = piece * (MAX_ANSWER_CHARACTERS // len(piece))
        made.append(start + middle[: MAX_ANSWER_CHARACTERS - len(start) - len(end)] + end)
    return made


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raises TimeoutError after so much processor time; a search looks for signals."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.skipif(sys.platform == "win32", reason="has no timer for processor time")
def test_each_regular_expression_is_quick_on_long_strings() -> None:
    long = texts()
    slowest = (0.0, "", "")
    for name, pattern in patterns().items():
        for text in long:
            started = time.process_time()
            try:
                with interrupted_after(LIMIT_SECONDS):
                    pattern.search(text)
            except TimeoutError:
                pytest.fail(f"{name} took more than {LIMIT_SECONDS} s on {text[:30]!r} ... {text[-10:]!r}")
            slowest = max(slowest, (time.process_time() - started, name, text[:30]))
    print(f"the slowest: {slowest}")
