r"""Cuts an expression, plain or LaTeX, into tokens.

    tokens(r"2\pi r^2")     # number 2, name pi, name r, sign ^, number 2

A run of letters is a known name (`sin`, `pi`, `np.arcsin`) or one name per letter. A name takes its index with it:
`v_{0}` and `v_0` are one name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


class UnreadableError(Exception):
    """The text is no expression that is known here."""


class UndefinedError(UnreadableError):
    """The expression has no finite value, as `1/0`."""


class TooLargeError(Exception):
    """The expression would take too long, or too much memory, to compute."""


MAX_EXPONENT_DIGITS = 4

FUNCTIONS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "asin": "asin", "acos": "acos", "atan": "atan",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "coth": "coth",
    "ln": "ln", "log": "ln", "lg": "ln", "exp": "exp", "sqrt": "sqrt", "abs": "abs",
    "floor": "floor", "ceil": "ceil", "gcd": "gcd", "lcm": "lcm", "max": "max", "min": "min",
}  # fmt: skip
"""What a function is called in answers -> in `exact.py` and `numeric.py`. A logarithm without a base is natural."""

CONSTANTS = {
    "pi": "pi", "e": "e", "i": "i",
    "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity",
}  # fmt: skip
GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "hbar", "ell", "mho",
)  # fmt: skip
SPELLED = frozenset(("alpha", "beta", "gamma", "delta", "theta", "lambda", "sigma", "omega", "phi", "pi"))
ACCENTS = frozenset(("bar", "dot", "ddot", "vec", "hat", "overline", "tilde"))
STRUCTURE = ACCENTS | {"frac", "binom", "lfloor", "rfloor", "lceil", "rceil", "div", "deg", "text"}
NUMBER = re.compile(r"((?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)\.?\d*|\.\d+)(?:[eE]([+-]?\d+)(?![A-Za-z\d.]))?")
LETTERS = re.compile(r"[^\W\d_]+")
PYTHON = re.compile(r"(?:np|math|numpy|sympy)\.(?=[a-z])")
INDEX = re.compile(r"\s*_\s*(?:\{((?:[^{}]|\{[^{}]*\})*)\}|\\?([A-Za-z]+|\d+))")
APPLIED = re.compile(r"\(\d{1,9}\)")
"""`I(0)` is a value of a function, never a product that is zero."""


@dataclass(frozen=True, slots=True)
class Token:
    """One piece: `kind` is "number", "name", "function", "constant", "command", "sign" or "end"."""

    kind: str
    text: str
    value: Fraction = Fraction(0)


def tokens(text: str) -> list[Token]:
    """The tokens of a tidy text, the last of kind "end".

    Raises:
        UnreadableError: if there is a sign or a command that no expression has.
        TooLargeError: if a number has a power of ten beyond `MAX_EXPONENT_DIGITS` digits.
    """
    text = PYTHON.sub("", text)
    found: list[Token] = []
    place = 0
    while place < len(text):
        place = _next(text, place, found)
    return [*found, Token("end", "")]


def number_value(digits: str, exponent: str | None) -> Fraction:
    """The value of `1,234.5` and `e33`."""
    if exponent is not None and len(exponent.lstrip("+-0")) > MAX_EXPONENT_DIGITS:
        raise TooLargeError(f"1e{exponent}")
    whole, _, decimals = digits.replace(",", "").partition(".")
    power = int(exponent or 0) - len(decimals)
    value = int(whole + decimals or "0")
    return Fraction(value * 10**power) if power >= 0 else Fraction(value, 10**-power)


def _next(text: str, place: int, found: list[Token]) -> int:
    character = text[place]
    if character.isspace():
        return place + 1
    if number := NUMBER.match(text, place):
        found.append(Token("number", number[0], number_value(number[1], number[2])))
        return number.end()
    if character == "\\":
        return _command(text, place, found)
    if letters := LETTERS.match(text, place):
        return _letters(text, place, letters[0], found)
    if character in "+-*/^!()[]{}|,'":
        found.append(Token("sign", character))
        return place + 1
    raise UnreadableError(f"{character!r}")


def _command(text: str, place: int, found: list[Token]) -> int:
    letters = re.compile(r"[A-Za-z]+").match(text, place + 1)
    if letters is None:
        if text[place + 1 : place + 2] in "{}%":
            raise UnreadableError(text[place : place + 2])
        return place + 2  # a space, or a line break without meaning
    name, end = letters[0], letters.end()
    known = next(
        (part for part in _heads(name) if part in FUNCTIONS or part in CONSTANTS or part in GREEK or part in STRUCTURE),
        None,
    )
    if known is None:
        raise UnreadableError(f"\\{name}")
    end -= len(name) - len(known)
    if known in ACCENTS:
        return _accent(text, end, known, found)
    if known in STRUCTURE:
        found.append(Token("command", known))
        return end
    return _named(text, end, known, found)


def _heads(name: str) -> list[str]:
    r"""The name, then its beginnings, the longest first: `\\cotx` lost a space."""
    return [name[:length] for length in range(len(name), 1, -1)]


def _letters(text: str, place: int, run: str, found: list[Token]) -> int:
    """A known name, or one name per letter; only the last letter can have an index."""
    known = next(
        (part for part in _heads(run) if part in FUNCTIONS or part in SPELLED or (part in CONSTANTS and len(part) > 1)),
        None,
    )
    part = known or run[0]
    return _named(text, place + len(part), part, found)


def _named(text: str, end: int, name: str, found: list[Token]) -> int:
    if name in FUNCTIONS:
        base = INDEX.match(text, end) if name in ("log", "max", "min") else None
        found.append(Token("function", FUNCTIONS[name]))
        if base is not None and name == "log":
            found[-1] = Token("function", "log:" + (base[1] or base[2] or ""))
        return end if base is None else base.end()
    index = INDEX.match(text, end)
    written = "" if index is None else re.sub(r"[\s{}\\]|text|rm\b", "", index[1] or index[2] or "")
    suffix = f"_{written}" if written else ""  # `x_{}` is x
    end = end if index is None else index.end()
    while text[end : end + 1] == "'":
        suffix, end = suffix + "'", end + 1
    if applied := APPLIED.match(text, end):
        suffix, end = suffix + applied[0], applied.end()
    kind = "constant" if name in CONSTANTS and not suffix else "name"
    found.append(Token(kind, CONSTANTS[name] if kind == "constant" else name + suffix))
    return end


def _accent(text: str, end: int, accent: str, found: list[Token]) -> int:
    inner = re.compile(r"\s*(?:\{\s*)?\\?([A-Za-z]+)\s*\}?").match(text, end)
    if inner is None:
        raise UnreadableError(f"\\{accent}")
    return _named(text, inner.end(), f"{accent}:{inner[1]}", found)
