"""Compares two parts without commas or relations: numbers with their units and digits, expressions, bases.

An exact reference wants the exact number. A reference with a decimal point wants the number to the digits that it
shows. An exact reference that is no finite decimal number (a third, a root, pi) may be given as a decimal number of at
least `MIN_DIGITS` digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from thoughtcache.tasks.maths.expressions.exact import exact_value
from thoughtcache.tasks.maths.expressions.identity import DIGITS, names_of, same_expression
from thoughtcache.tasks.maths.expressions.numeric import context, numeric_value
from thoughtcache.tasks.maths.expressions.parser import Node, number
from thoughtcache.tasks.maths.expressions.tokens import UndefinedError
from thoughtcache.tasks.maths.quantity import Quantity, read_quantity

MIN_DIGITS = 6
FLOAT_DIGITS = 12
"""A reference that shows more digits is a computed float, whose last digits are noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What counts as equal.

    Attributes:
        rounding: decimal numbers are compared to the digits that are shown; else only exact values are equal.
        percentage: a number without a percent sign is meant in percent; else `50%` is 0.5.
    """

    rounding: bool = True
    percentage: bool = False


def same_value(expected: str, given: str, rules: Rules) -> str:
    """The reason of a verdict: "exact" or "rounded" if both are the same, "different" or "other_form" if not.

    Raises:
        UnreadableError: if one of them cannot be read.
        TooLargeError: if one of them would take too long to compute.
    """
    wanted = read_quantity(expected)
    found = read_quantity(given, loose_units=not names_of(wanted.node))
    if wanted.base != found.base:
        return "other_form"
    if wanted.base is not None:
        return "exact" if wanted.digits == found.digits else "different"
    if _units_differ(wanted, found):
        return "other_form"
    try:
        return _compare(wanted, found, rules)
    except UndefinedError:
        return "different"


def _units_differ(wanted: Quantity, found: Quantity) -> bool:
    """Whether both have a known unit, and not the same; a unit that one of them leaves out is no difference."""
    units = {wanted.unit, found.unit} - {""}
    return len(units) == 2


def _compare(wanted: Quantity, found: Quantity, rules: Rules) -> str:
    infinite = _infinity(wanted.node), _infinity(found.node)
    if any(infinite):
        return "exact" if infinite[0] == infinite[1] else "different"
    if wanted.unit == found.unit or rules.percentage or "%" not in (wanted.unit, found.unit):
        return _numbers(wanted, found, rules)
    if wanted.unit == "%":  # 50 % is 0.5, and not 50
        return _numbers(_percent(wanted), found, rules)
    value = exact_value(wanted.node)
    if value is not None and abs(value) >= 1:  # the reference may leave the sign out: `what per cent`
        reason = _numbers(wanted, found, rules)
        if reason != "different":
            return reason
    return _numbers(wanted, _percent(found), rules)


def _percent(quantity: Quantity) -> Quantity:
    half = None if quantity.half is None else quantity.half / 100
    node = Node("mul", (quantity.node, number(Fraction(1, 100))))
    return Quantity(node=node, half=half, num_digits=quantity.num_digits)


def _numbers(wanted: Quantity, found: Quantity, rules: Rules) -> str:
    if same_expression(wanted.node, found.node):
        return "exact"
    is_number = not (names_of(wanted.node) or names_of(found.node))
    if rules.rounding and is_number and (_to_digits_of_reference(wanted, found) or _long_decimal(wanted, found)):
        return "rounded"
    return "different"


def _to_digits_of_reference(wanted: Quantity, found: Quantity) -> bool:
    """Whether it rounds to the digits of a decimal reference."""
    if wanted.half is None or exact_value(wanted.node) == 0:
        return False
    half = wanted.half
    if wanted.num_digits >= FLOAT_DIGITS:
        half = max(half, abs(exact_value(wanted.node) or Fraction(0)) / 10 ** (FLOAT_DIGITS - 3))
    exact = exact_value(wanted.node), exact_value(found.node)
    if exact[0] is not None and exact[1] is not None:
        return abs(exact[0] - exact[1]) < half
    return bool(_distance(wanted.node, found.node) < _float(half))


def _long_decimal(wanted: Quantity, found: Quantity) -> bool:
    """Whether a decimal number is an exact reference, rounded or cut after at least `MIN_DIGITS` digits."""
    if wanted.half is not None or found.half is None or found.num_digits < MIN_DIGITS:
        return False
    value = exact_value(wanted.node)
    if value is not None and _is_finite_decimal(value):
        return False
    distance = _distance(wanted.node, found.node)
    if distance <= 1.000001 * _float(found.half):
        return True
    mp = context()
    sizes = [abs(numeric_value(node, {}, DIGITS)) for node in (wanted.node, found.node)]
    return bool(distance < 2 * mp.mpf(found.half.numerator) / found.half.denominator and sizes[1] < sizes[0])


def _is_finite_decimal(value: Fraction) -> bool:
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1


def _distance(first: Node, second: Node) -> Any:
    return abs(numeric_value(first, {}, DIGITS) - numeric_value(second, {}, DIGITS))


def _float(value: Fraction) -> Any:
    return context().mpf(value.numerator) / value.denominator


def _infinity(node: Node) -> int:
    """1 or -1 for infinities, 0 for everything else."""
    if node.op == "neg":
        return -_infinity(node.args[0])
    return int(node.op == "const" and node.name == "infinity")
