"""Computes an expression of rational numbers exactly, within a bound on the size of every intermediate number."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from thoughtcache.tasks.maths.expressions.parser import Node
from thoughtcache.tasks.maths.expressions.tokens import TooLargeError, UndefinedError

MAX_BITS = 100_000
"""Bits of a numerator and its denominator together: about 30,000 decimal digits; 5000! has 54,000 bits."""

MAX_FACTORIAL = 5000


def exact_value(node: Node) -> Fraction | None:
    """The rational value, or None if the expression has names, roots or functions that are not rational.

    Raises:
        TooLargeError: if a number on the way has more than `MAX_BITS` bits.
        UndefinedError: if it has no value, as after a division by zero.
    """
    if node.op == "num":
        return node.value
    if node.op in ("sym", "const"):
        return None
    values = [exact_value(argument) for argument in node.args]
    if any(value is None for value in values):
        return None
    operation = OPERATIONS.get(node.op)
    return None if operation is None else operation([value for value in values if value is not None])


def bounded(value: Fraction) -> Fraction:
    """The same number.

    Raises:
        TooLargeError: if it has more than `MAX_BITS` bits.
    """
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise TooLargeError(f"a number of more than {MAX_BITS} bits")
    return value


def _sum(values: list[Fraction]) -> Fraction:
    total = Fraction(0)
    for value in values:
        total = bounded(total + value)
    return total


def _product(values: list[Fraction]) -> Fraction:
    total = Fraction(1)
    for value in values:
        total = bounded(total * value)
    return total


def _inverse(values: list[Fraction]) -> Fraction:
    if values[0] == 0:
        raise UndefinedError("division by zero")
    return 1 / values[0]


def _power(values: list[Fraction]) -> Fraction | None:
    base, exponent = values
    if exponent.denominator != 1:
        return _root(base, exponent)
    if base == 0 and exponent <= 0:
        raise UndefinedError("a power of zero without a value")
    if base in (0, 1):
        return base
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise TooLargeError(f"a power of more than {MAX_BITS} bits")
    return bounded(Fraction(base ** int(exponent)))


def _root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """An even root that comes out whole above and below: `4^(1/2)`, `(9/4)^(3/2)`; None for all others."""
    if exponent.denominator != 2 or base < 0:
        return None
    above, below = math.isqrt(base.numerator), math.isqrt(base.denominator)
    if above**2 != base.numerator or below**2 != base.denominator:
        return None
    return _power([Fraction(above, below), Fraction(exponent.numerator)])


def whole(value: Fraction, limit: int = MAX_FACTORIAL) -> int:
    """The value as an integer from 0 to `limit`.

    Raises:
        TooLargeError: if it is larger.
        UndefinedError: if it is negative or not whole.
    """
    if value > limit:
        raise TooLargeError(f"a factorial of more than {limit}")
    if value < 0 or value.denominator != 1:
        raise UndefinedError("a factorial of a number that is negative or not whole")
    return int(value)


def _factorial(values: list[Fraction]) -> Fraction:
    return bounded(Fraction(_factorials(whole(values[0]))))


@lru_cache(maxsize=64)
def _factorials(number: int) -> int:
    return math.factorial(number)


def _double_factorial(values: list[Fraction]) -> Fraction:
    return bounded(Fraction(math.prod(range(whole(values[0]), 0, -2))))


def _binomial(values: list[Fraction]) -> Fraction:
    return bounded(Fraction(math.comb(whole(values[0]), whole(values[1]))))


def _integers(values: list[Fraction]) -> list[int]:
    if any(value.denominator != 1 for value in values):
        raise UndefinedError("a common divisor of fractions")
    return [int(value) for value in values]


OPERATIONS: dict[str, Callable[[list[Fraction]], Fraction | None]] = {
    "add": _sum,
    "mul": _product,
    "neg": lambda values: -values[0],
    "inv": _inverse,
    "pow": _power,
    "factorial": _factorial,
    "double_factorial": _double_factorial,
    "binom": _binomial,
    "abs": lambda values: abs(values[0]),
    "floor": lambda values: Fraction(math.floor(values[0])),
    "ceil": lambda values: Fraction(math.ceil(values[0])),
    "gcd": lambda values: Fraction(math.gcd(*_integers(values))),
    "lcm": lambda values: bounded(Fraction(math.lcm(*_integers(values)))),
    "max": max,
    "min": min,
}
"""What can be computed with rational numbers."""
