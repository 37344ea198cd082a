"""Expressions of answers: the tree, exact values against Python's own, identities, and bounds on what is computed."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thoughtcache.tasks.maths.expressions.exact import exact_value
from thoughtcache.tasks.maths.expressions.identity import same_equation, same_expression
from thoughtcache.tasks.maths.expressions.numeric import numeric_value
from thoughtcache.tasks.maths.expressions.parser import Node, parse
from thoughtcache.tasks.maths.expressions.tokens import TooLargeError, UndefinedError, UnreadableError
from thoughtcache.tasks.maths.latex import tidy


def sums() -> st.SearchStrategy[str]:
    """Texts that mean the same in Python and in an answer."""
    numbers = st.integers(0, 99).map(str)
    return st.recursive(
        numbers,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({''.join(parts)})"),
            st.tuples(inner, st.integers(1, 9)).map(lambda parts: f"({parts[0]}/{parts[1]})"),
            st.tuples(inner, st.integers(0, 3)).map(lambda parts: f"({parts[0]}^{parts[1]})"),
            inner.map(lambda part: f"(-{part})"),
        ),
        max_leaves=8,
    )


@settings(max_examples=150, deadline=None)
@given(text=sums())
def test_rational_values_are_those_of_python(text: str) -> None:
    node = parse(text)
    written = "".join(f"Fraction({part})" if part.isdigit() else part for part in _pieces(text.replace("^", "**")))
    try:
        expected = eval(written, {"Fraction": Fraction})
    except ZeroDivisionError:
        expected = None
    try:
        value = exact_value(node)
    except (UndefinedError, TooLargeError):
        return  # 0^0, or beyond the bound
    assert value == expected
    assert (
        abs(numeric_value(node, {}, 50) - mpmath.mpf(value.numerator) / value.denominator) <= abs(float(value)) * 1e-14
    )


def _pieces(text: str) -> list[str]:
    pieces = [""]
    for character in text:
        if character.isdigit() == pieces[-1].isdigit() and pieces[-1] != "":
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"\sin 2x", r"2 \sin x \cos x"),
        (r"\log_2 8", "3"),
        (r"\sqrt[3]{-8}", "-2"),
        (r"\sqrt{2}\sqrt{3}", r"\sqrt{6}"),
        (r"\frac{1}{\sqrt{2}-1}", r"1+\sqrt{2}"),
        ("(x+1)^3", "x^3+3x^2+3x+1"),
        (r"e^{i\pi}", "-1"),
        (r"\frac{a+b}{c}", "a/c + b/c"),
        (r"\lceil n/2 \rceil", r"\lfloor (n+1)/2 \rfloor"),
        (r"\arctan 1", r"\frac{\pi}{4}"),
        (r"|x|^2", "x^2"),
        ("(n-2) 2^{n}", "2^n n - 2^{n+1}"),
        ("5!!", "15"),
        (r"\gcd(12, 18)", "6"),
        ("1 1/2", r"\frac32"),
        (r"v_{0} t", "t v_0"),
        ("x_{} t", "t x"),
        (r"x^{\prime} y", "y x'"),
    ],
)
def test_the_same_expression(first: str, second: str) -> None:
    assert same_expression(parse(tidy(first)), parse(tidy(second)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\sin x", "x"),
        ("x_1", "x_2"),
        ("x'", "x"),
        (r"\sqrt{x^2+10^{-20}}", "x"),
        ("10^{300} + x", "10^{300} + y"),
        (r"\pi", "355/113"),
        (r"\lfloor n/2 \rfloor", "n/2"),
        ("1/1000!", "1/1001!"),
    ],
)
def test_another_expression(first: str, second: str) -> None:
    assert not same_expression(parse(tidy(first)), parse(tidy(second)))


def test_equations_up_to_a_factor() -> None:
    def sides(left: str, right: str) -> tuple[Node, Node]:
        return parse(left), parse(right)

    assert same_equation(sides("2x", "y+1"), sides("4x-2y", "2"))
    assert not same_equation(sides("2x", "y+1"), sides("2x", "y+2"))
    assert not same_equation(sides("x^2", "4"), sides("x", "2"))


@pytest.mark.parametrize("text", ["", "+", "1 2", "(1", "1)", "x@y", r"\int x", "a,,b", "^2", r"\frac{1}", "|x"])
def test_unreadable(text: str) -> None:
    with pytest.raises(UnreadableError):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "9^9^9^9",
        "5001!",
        "10^{99999}^9",
        "1e10000",
        "x" + "!" * 400,
        "3^2" * 3 + r"\deg" * 200,
        r"\frac" * 100,
        r"\sin(10^{40}\pi)",
        "1e99999",
        "(" * 60 + "1" + ")" * 60,
        "2^" * 100 + "2",
    ],
)
def test_too_large(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TooLargeError):
        same_expression(parse(text), parse(r"\sqrt{2}"))
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "text", ["1/0", "0^{-1}", "0^0", "(-3)!", "(-10^{5000})!", "(1/10^{5000})!!", r"\frac{1}{1-1}"]
)
def test_undefined(text: str) -> None:
    with pytest.raises(UndefinedError):
        exact_value(parse(text))


def test_large_but_bounded() -> None:
    assert exact_value(parse("100!/2^{50}")) == Fraction(math.factorial(100), 2**50)
