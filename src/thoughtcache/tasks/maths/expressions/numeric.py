"""Computes an expression to many digits, with complex numbers and values for its names.

mpmath does the arithmetic. What would make it slow (a sine of 10^1000000, towers of powers) is refused first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from thoughtcache.tasks.maths.expressions.exact import MAX_FACTORIAL, exact_value
from thoughtcache.tasks.maths.expressions.parser import Node
from thoughtcache.tasks.maths.expressions.tokens import TooLargeError, UndefinedError, UnreadableError

MAX_LOG = 1e6
"""Largest natural logarithm of a power or exponential."""

MAX_ANGLE = 1e30

_LOCAL = threading.local()


def context() -> Any:
    """The mpmath context of this thread: contexts keep their precision inside and must not be shared."""
    if not hasattr(_LOCAL, "context"):
        import mpmath

        _LOCAL.context = mpmath.MPContext()
    return _LOCAL.context


def numeric_value(node: Node, names: Mapping[str, Fraction], digits: int) -> Any:
    """The value to `digits` digits, as a complex number of mpmath.

    Raises:
        TooLargeError: if it cannot be computed quickly.
        UndefinedError: if it has no finite value.
        UnreadableError: if it has a function that is not known here.
    """
    mp = context()
    mp.dps = digits
    _LOCAL.largest = mp.mpf(1)
    try:
        value = mp.mpc(_value(node, names, mp))
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise UndefinedError(str(error)) from error
    if not mp.isfinite(value):
        raise UndefinedError("no finite value")
    return value


def num_digits_before_point(node: Node, names: Mapping[str, Fraction]) -> int:
    """Decimal digits before the point of the largest number on the way to the value: what rounding must not reach.

    Raises:
        TooLargeError, UndefinedError, UnreadableError: as `numeric_value`.
    """
    numeric_value(node, names, 15)
    if not context().isfinite(_LOCAL.largest):  # as in 1/ln(0)
        raise UndefinedError("no finite value on the way")
    return int(context().mag(_LOCAL.largest) * 0.30103) + 1


def _value(node: Node, names: Mapping[str, Fraction], mp: Any) -> Any:
    value = _computed(node, names, mp)
    _LOCAL.largest = max(_LOCAL.largest, abs(value))
    return value


def _computed(node: Node, names: Mapping[str, Fraction], mp: Any) -> Any:
    if node.op == "num":
        return _rational(node.value, mp)
    if node.op == "sym":
        return _rational(names[node.name], mp)
    if node.op == "const":
        return _constant(node.name, mp)
    if node.op in ("factorial", "double_factorial", "binom", "gcd", "lcm"):
        return _whole_numbers(node, names, mp)
    arguments = [_value(argument, names, mp) for argument in node.args]
    if node.op == "add":
        return mp.fsum(arguments)
    if node.op == "mul":
        return mp.fprod(arguments)
    if node.op == "pow":
        return _power(arguments[0], arguments[1], mp)
    return FUNCTIONS[node.op](mp, *arguments) if node.op in FUNCTIONS else _unknown(node.op)


def _unknown(name: str) -> Any:
    raise UnreadableError(f"{name} has no value here")


def _rational(value: Fraction, mp: Any) -> Any:
    return mp.mpf(value.numerator) / value.denominator if value.denominator != 1 else mp.mpf(value.numerator)


def _constant(name: str, mp: Any) -> Any:
    if name == "infinity":
        raise UndefinedError("infinity is no number")
    return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1), "degree": +mp.degree}[name]


def _power(base: Any, exponent: Any, mp: Any) -> Any:
    if base == 0:
        if mp.re(exponent) <= 0:
            raise UndefinedError("a power of zero without a value")
        return mp.mpf(0)
    if abs(exponent) * (abs(mp.log(abs(base))) + 4) > MAX_LOG:
        raise TooLargeError("a power whose logarithm is above a million")
    if mp.im(base) == 0 and mp.re(base) < 0 and mp.im(exponent) == 0 and 0 < abs(exponent) < 1:
        odd = mp.re(1 / exponent)
        if abs(odd - mp.nint(odd)) < mp.mpf(10) ** (3 - mp.dps) and int(mp.nint(odd)) % 2:
            return -mp.power(-base, exponent)  # the real cube root of a negative number
    return mp.power(base, exponent)


def _whole_numbers(node: Node, names: Mapping[str, Fraction], mp: Any) -> Any:
    """Factorials and the like: exactly where the arguments are whole numbers, else by the gamma function."""
    arguments = [_value(argument, names, mp) for argument in node.args]
    if any(abs(argument) > MAX_FACTORIAL for argument in arguments):
        raise TooLargeError(f"a factorial of more than {MAX_FACTORIAL}")
    if all(mp.isint(argument) for argument in arguments):
        leaves = tuple(Node("num", value=Fraction(int(mp.re(argument)))) for argument in arguments)
        value = exact_value(Node(node.op, leaves))
        return _rational(value, mp) if value is not None else _unknown(node.op)
    if node.op == "factorial":
        return mp.factorial(arguments[0])
    if node.op == "binom":
        return mp.binomial(*arguments)
    return _unknown(node.op)


def _angle(function: str) -> Callable[..., Any]:
    def compute(mp: Any, argument: Any) -> Any:
        if abs(argument) > MAX_ANGLE or abs(mp.im(argument)) > MAX_LOG:
            raise TooLargeError("an angle that is too large")
        return getattr(mp, function)(argument)

    return compute


def _growing(function: str) -> Callable[..., Any]:
    def compute(mp: Any, argument: Any) -> Any:
        if abs(argument) > MAX_LOG:
            raise TooLargeError("an exponent above a million")
        return getattr(mp, function)(argument)

    return compute


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "neg": lambda mp, x: -x,
    "inv": lambda mp, x: 1 / x,
    "abs": lambda mp, x: abs(x),
    "ln": lambda mp, x: mp.log(x),
    "asin": lambda mp, x: mp.asin(x),
    "acos": lambda mp, x: mp.acos(x),
    "atan": lambda mp, x: mp.atan(x),
    "floor": lambda mp, x: mp.floor(mp.re(x) + mp.mpf(10) ** (5 - mp.dps)),
    "ceil": lambda mp, x: mp.ceil(mp.re(x) - mp.mpf(10) ** (5 - mp.dps)),
    "max": lambda mp, *xs: max(xs, key=mp.re),
    "min": lambda mp, *xs: min(xs, key=mp.re),
    **{name: _angle(name) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{name: _growing(name) for name in ("exp", "sinh", "cosh", "tanh", "coth")},
}
"""What is computed by mpmath, by the name of the operation."""
