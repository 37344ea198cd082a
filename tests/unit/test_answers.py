"""Answer checking: what is extracted, what is equal, what is malformed, and that time is bounded in any thread."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from thoughtcache.tasks.maths.answers import check_math_answer
from thoughtcache.tasks.maths.boxes import BOX, last_boxed
from thoughtcache.tasks.verdict import Verdict

ENDLESS = r"\int_0^1 \sum_{k=1}^{\infty} \frac{x^k \sin(k x)}{k+x} dx"
"""A formula that is not known to us, and on which sympy does not come to an end."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{3}", "3"),
        (r"\boxed{1} then \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{4} and \boxed{5", None),
        (r"\boxed {4}", "4"),
        (r"\fbox{4}, \framebox{5}", "5"),
        (r"$\boxed 7$", "7"),
        (r"\boxed{3 + \boxed{4}}", "3 + {4}"),
        (r"\boxedby{4}", None),
        (r"\boxed{}", ""),
        (r"\boxed{" + "1" * 1001 + "}", None),
        ("no box", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


def test_many_open_boxes_are_scanned_quickly() -> None:
    start = time.monotonic()
    assert last_boxed(BOX * 5000) is None
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        (r"so \boxed{336}", r"336^\circ"),
        (r"\boxed{336^\circ}", "336"),
        (r"\boxed{25}", "025"),
        (r"\boxed{0.5}", r"\boxed{\frac{1}{2}}"),
        (r"\boxed{27}", "27.0"),
        (r"\boxed{84, 69}", "69,84"),
        (r"\boxed{2x+1}", "1 + 2 x"),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}"),
        (r"first \boxed{4}, no, \boxed{3}", "3"),
        ("The answer is 72.", "72"),
        (r"\boxed{4.5 \times 10^{33}}", "4.5e33"),
        (r"\boxed{-1e-5}", "-0.00001"),
        (r"\boxed{2.88e-19}", r"2.88 \times 10^{-19}"),
        (r"\boxed{0.05\%}", "0.0005"),
        (r"\boxed{2e}", "2e"),
        (r"\boxed{0.333333}", "1/3"),
        ("1" * 100_000 + " so the answer is $72$", "72"),
    ],
)
def test_equal(completion: str, reference: str) -> None:
    check = check_math_answer(completion, reference)
    assert (check.correct, check.parsed, check.timed_out) == (True, True, False)


@pytest.mark.parametrize(
    ("completion", "reference"),
    [
        (r"\boxed{4}", "3"),
        (r"first \boxed{3}, no, \boxed{4}", "3"),
        (r"\boxed{-3}", "3"),
        (r"\boxed{\frac{1}{0}}", "3"),
        ("the answer is 7", "72"),
        (r"\boxed{5 \times 10^{-19}}", "2.88e-19"),
        (r"\boxed{0.0}", "2.88e-19"),
        (r"\boxed{4.6e33}", "4.5e33"),
    ],
)
def test_different(completion: str, reference: str) -> None:
    check = check_math_answer(completion, reference)
    assert (check.correct, check.parsed, check.timed_out) == (False, True, False)
    assert check.extracted is not None


@pytest.mark.parametrize("completion", ["", "I do not know", r"\boxed{", r"3 \boxed{}", r"\boxed{\frac{1}{}", "\x00"])
def test_malformed_is_a_result(completion: str) -> None:
    check = check_math_answer(completion, "3")
    assert (check.correct, check.parsed, check.timed_out) == (False, False, False)


def test_endless_comparison_ends_and_the_next_one_works() -> None:
    start = time.monotonic()
    check = check_math_answer(rf"\boxed{{{ENDLESS}}}", "3", timeout_seconds=0.5)
    assert check == Verdict(correct=False, parsed=False, timed_out=True, extracted=ENDLESS, reason="timed_out")
    assert time.monotonic() - start < 60  # the worker may have to start first
    assert check_math_answer(r"\boxed{\sum_{k=1}^{4} k}", "10").reason == "math_verify"


def test_threads_get_their_own_verdicts() -> None:
    """The replies are not mixed up; math-verify's own alarm would raise outside the main thread."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        verdicts = list(pool.map(lambda n: check_math_answer(rf"\boxed{{{n}.0}}", str(n - n % 2)).correct, range(24)))
    assert verdicts == [n % 2 == 0 for n in range(24)]
    assert threading.active_count() < 10


@pytest.mark.parametrize("reference", ["", "  ", r"\boxed{}", "1" * 1001])
def test_refused_references(reference: str) -> None:
    with pytest.raises(ValueError, match=r"reference is .* allowed: 1 to 1000"):
        check_math_answer("1", reference)


def test_refused_time() -> None:
    with pytest.raises(ValueError, match=r"timeout_seconds is 0\.0, allowed: above 0"):
        check_math_answer("1", "1", timeout_seconds=0.0)
