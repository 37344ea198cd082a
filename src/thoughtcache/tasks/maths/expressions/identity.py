"""Decides whether two expressions are the same number, or the same function of their names.

Rational numbers are compared exactly. Other numbers are computed to `DIGITS` and to twice as many digits: a difference
that is only rounding becomes smaller with more digits, one that is real does not. Expressions with names are computed
at a few places that depend on the names alone. Two different formulas that agree at all of them, to fifty digits, are
not known; this is no proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from thoughtcache.tasks.maths.expressions.exact import exact_value
from thoughtcache.tasks.maths.expressions.numeric import context, num_digits_before_point, numeric_value
from thoughtcache.tasks.maths.expressions.parser import Node
from thoughtcache.tasks.maths.expressions.tokens import UndefinedError

DIGITS = 50
MAX_DIGITS = 2000
"""Digits before the point that are kept beside the others; what is larger is compared relatively."""

NUM_PLACES = 3
NUM_WHOLE_PLACES = 6
WHOLE_NUMBERS = frozenset(("floor", "ceil", "factorial", "double_factorial", "binom", "gcd", "lcm"))


def names_of(node: Node) -> frozenset[str]:
    """The names that an expression depends on."""
    if node.op == "sym":
        return frozenset((node.name,))
    return frozenset().union(*(names_of(argument) for argument in node.args)) if node.args else frozenset()


def same_expression(first: Node, second: Node) -> bool:
    """Whether both are the same number or function.

    Raises:
        TooLargeError: if one of them would take too long to compute.
        UndefinedError: if both have no value where they were computed.
    """
    if first == second:
        return True
    exact = exact_value(first), exact_value(second)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    names = names_of(first) | names_of(second)
    if not names:
        return _same_number(first, second, {})
    return _same_at_places(first, second, names)


def same_equation(first: tuple[Node, Node], second: tuple[Node, Node]) -> bool:
    """Whether two equations are the same but for a constant factor, and terms on the other side.

    Raises:
        TooLargeError: if a side would take too long to compute.
        UndefinedError: if a side has no value at some place.
    """
    differences = [Node("add", (left, Node("neg", (right,)))) for left, right in (first, second)]
    names = names_of(differences[0]) | names_of(differences[1])
    ratios = []
    mp = context()
    for place in _places(names, differences, NUM_PLACES + 1):
        values = [numeric_value(difference, place, DIGITS) for difference in differences]
        if any(abs(value) < mp.mpf(10) ** (-DIGITS // 2) for value in values):
            return False  # true everywhere or a place that happens to be a solution: not an equation to compare
        ratios.append(values[1] / values[0])
    return all(abs(ratio - ratios[0]) <= mp.mpf(10) ** (-DIGITS // 2) * abs(ratios[0]) for ratio in ratios)


def _same_at_places(first: Node, second: Node, names: frozenset[str]) -> bool:
    """Whether they agree at all places at which both have a value; a place where only one has one decides as well."""
    computed = 0
    is_whole = bool(WHOLE_NUMBERS & (_operations(first) | _operations(second)))
    for place in _places(names, [first, second], NUM_WHOLE_PLACES if is_whole else NUM_PLACES):
        try:
            numeric_value(first, place, DIGITS)
        except UndefinedError:
            continue
        computed += 1
        if not _same_number(first, second, place):
            return False
    if not computed:
        raise UndefinedError("no value at any place")
    return True


def _same_number(first: Node, second: Node, names: Mapping[str, Fraction]) -> bool:
    """Whether the difference of two numbers is nothing but rounding."""
    before = max(num_digits_before_point(node, names) for node in (first, second))
    digits = DIGITS + min(before, MAX_DIGITS)
    differences = []
    scale: Any = 0
    for precision in (digits, digits + DIGITS):
        left, right = (numeric_value(node, names, precision) for node in (first, second))
        differences.append(abs(left - right))
        scale = max(abs(left), abs(right))
    mp = context()
    coarse, fine = differences
    return bool(fine <= mp.mpf(10) ** (10 - digits) * scale or fine <= mp.mpf(10) ** (20 - DIGITS) * coarse)


def _operations(node: Node) -> frozenset[str]:
    return frozenset((node.op,)).union(*(_operations(argument) for argument in node.args))


def _places(names: frozenset[str], nodes: list[Node], num_places: int) -> Iterator[Mapping[str, Fraction]]:
    """Values for the names: whole numbers for factorials and floors, else fractions; also negative where `|x|` is."""
    operations = frozenset().union(*(_operations(node) for node in nodes))
    is_whole = bool(WHOLE_NUMBERS & operations)
    for index in range(num_places):
        place = {}
        for name in names:
            drawn = int.from_bytes(hashlib.sha256(f"{name} {index}".encode()).digest()[:6], "big")
            place[name] = (
                Fraction(2 + drawn % 29) if is_whole else Fraction(3, 10) + Fraction(drawn % 10**12, 10**12) * 2
            )
            if "abs" in operations and index % 2:
                place[name] = -place[name]
        yield place
