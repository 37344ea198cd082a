r"""Reads one part of an answer: a number or an expression, with its unit, its digits, its base.

read_quantity(r"\usd 18.90")        # 18.9, unit "usd", shown to 0.005
read_quantity("4210_{5}")           # 4210 in base 5
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from thoughtcache.tasks.maths.expressions.exact import exact_value
from thoughtcache.tasks.maths.expressions.identity import names_of
from thoughtcache.tasks.maths.expressions.parser import Node, number, parse
from thoughtcache.tasks.maths.expressions.tokens import UnreadableError, number_value
from thoughtcache.tasks.maths.number_words import BASES, SCALES, number_of_words
from thoughtcache.tasks.maths.units import unit_name

BASED = re.compile(
    r"^(?P<sign>[+-]?)\(?\s*(?P<digits>\d[\dA-Z]*)\s*(?:\)\s*)?"
    r"(?:_\s*(?:\{\s*)?(?:\\text\{\s*)?(?P<index>\d+|[a-z]+)\s*(?:\}\s*)?\}?"
    r"|(?:\\text\{\s*)?\(?(?:in\s+)?base[\s}-]*(?P<word>\d+|[a-z]+)\s*[)}]*)$"
)
DECIMAL = re.compile(
    r"^(?P<sign>[+-]*)\s*(?P<digits>(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)\.?\d*|\.\d+)(?:[eE](?P<e>[+-]?\d+)|\s*\*\s*10\s*\^\s*\{?\s*(?P<power>[+-]?\d+)\s*\}?)?$"
)
CURRENCY = re.compile(r"^([+-]?)\s*(\\usd|€|£|¥|₹|(?:US|USD)\s*\\usd|USD|EUR)\s*")
WORDS_AFTER = re.compile(
    r"^(?P<head>.*[\d}).!%|])\s*(?P<tail>(?:\\text\{[^{}]*\}|[A-Za-z]|€|£|\\deg)[^\d=]{0,100}(?:\^\s*\{?-?\d\}?\s*)?)$",
    re.DOTALL,
)
TEXT_AFTER = re.compile(
    r"^(?P<head>.+?)\s*(?P<tail>\\text\{[^{}]*\}(?:\s*\^\s*\{?-?\d\}?)?(?:\s*(?:/\s*)?\\text\{[^{}]*\}(?:\s*\^\s*\{?-?\d\}?)?)*)$",
    re.DOTALL,
)
SCALE_AFTER = re.compile(
    rf"^(?P<head>.*\d)\s*(?:\\text\{{)?\s*(?P<scale>{'|'.join(SCALES)})s?\s*\}}?(?P<tail>.*)$", re.DOTALL
)
ANGLE = re.compile(r"(?:sin|cos|tan|cot|sec|csc)")
"""Degrees behind a function belong to its argument."""

MINUTES = re.compile(r"^(\d+)\s*(?:\\text\{)?\s*([ap])\.?\s?m\.?\s*\}?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A number or an expression.

    Attributes:
        node: the expression without its unit; 0 where `base` and `digits` are what is compared.
        unit: a name of `units.py`, "" without a unit or with one that is not known.
        half: half a unit of the last digit shown, if it is written as a decimal number; None for exact values.
        num_digits: significant digits of a decimal number, 0 for exact values.
        base: the base that is written with the digits; None without.
        digits: the digits in that base.
    """

    node: Node
    unit: str = ""
    half: Fraction | None = None
    num_digits: int = 0
    base: int | None = None
    digits: str = ""


def read_quantity(text: str, *, loose_units: bool = False) -> Quantity:
    """Read a part without commas and relations.

    Args:
        text: the part, tidy.
        loose_units: take a letter or a word behind a number for a unit (`5 m`, `18 eggs`); else only words that cannot
            be names of an expression.

    Raises:
        UnreadableError: if it is no expression.
        TooLargeError: if it would take too long to compute.
    """
    text = text.strip()
    based = _based(text)
    if based is not None:
        return based
    body, unit = _without_unit(text, loose_units=loose_units)
    scale = SCALE_AFTER.match(body)
    if scale and not scale["tail"].strip(" }"):
        return Quantity(node=Node("mul", (parse(scale["head"]), number(SCALES[scale["scale"]]))), unit=unit)
    decimal = DECIMAL.match(body)
    if decimal:
        return _decimal(decimal, unit)
    spelled = number_of_words(re.sub(r"\\text\{([^{}]*)\}", r"\1", body))
    return Quantity(node=parse(body) if spelled is None else number(spelled), unit=unit)


def _based(text: str) -> Quantity | None:
    found = BASED.match(text)
    if found is None:
        return None
    word = found["index"] or found["word"]
    base = int(word) if word.isdigit() else BASES.get(word, 0)
    if base == 10 and found["digits"].isdigit():
        return Quantity(node=number(int(found["sign"] + found["digits"])))
    digits = found["sign"].lstrip("+") + (found["digits"].lstrip("0") or "0")
    return Quantity(node=number(0), base=base, digits=digits)


def _without_unit(text: str, *, loose_units: bool) -> tuple[str, str]:
    """The text before its unit, and the name of the unit."""
    if text.endswith(r"\deg") and ANGLE.search(text):
        return text, ""
    if clock := MINUTES.match(text):
        return clock[1], clock[2].casefold() + "m"
    if currency := CURRENCY.match(text):
        unit = {"€": "eur", "£": "gbp"}.get(currency[2], "usd")
        amount = text[currency.end() :]
        if CURRENCY.match(amount):
            return text, ""  # `$ $ 5`: nothing that is known
        return currency[1] + _without_unit(amount, loose_units=loose_units)[0], unit
    if re.search(r"\d\s*\\?usd\s*$", text):
        return re.sub(r"\\?usd\s*$", "", text).strip(), "usd"
    for sign, name in ((r"\%", "%"), ("%", "%"), (r"\text{percent}", "%"), ("percent", "%"), (r"\deg", "deg")):
        if text.endswith(sign) and text != sign:
            return text.removesuffix(sign).strip(), name
    found = (WORDS_AFTER if loose_units else TEXT_AFTER).match(text) or _plain_words(text)
    if found is None:
        return text, ""
    words = unit_name(found["tail"])
    if words is None or not found["head"].strip() or not _is_number(found["head"], loose_units):
        return text, ""
    return found["head"].strip(), words


def _plain_words(text: str) -> re.Match[str] | None:
    """A known unit of at least two letters, or words of at least three, behind a plain number."""
    return re.match(
        r"^(?P<head>[+-]?\d[\d.,]*(?:[eE][+-]?\d+)?|\\frac\{\d+\}\{\d+\})\s*(?P<tail>[A-Za-z]{2,}\.?(?:[\s/]+[A-Za-z]+)*(?:\s*\^\s*\{?-?\d\}?)?)$",
        text,
    )


def _is_number(head: str, loose_units: bool) -> bool:
    r"""Whether words behind it can be a unit: behind a formula with names only those in `\text` can."""
    try:
        return not loose_units or not names_of(parse(head))
    except UnreadableError:
        return False


def _decimal(found: re.Match[str], unit: str) -> Quantity:
    power = found["e"] if found["e"] is not None else found["power"]
    value = number_value(found["digits"], power)
    if found["sign"].count("-") % 2:
        value = -value
    shown = found["digits"].replace(",", "")
    if "." not in shown.rstrip(".") and found["e"] is None:
        return Quantity(node=number(value), unit=unit)
    decimals = len(shown.partition(".")[2])
    half = number_value("1", str(int(power or 0) - decimals)) / 2
    significant = shown.replace(".", "").lstrip("0")
    return Quantity(node=number(value), unit=unit, half=half, num_digits=len(significant))


def value_of(quantity: Quantity) -> Fraction | None:
    """Its rational value, or None."""
    return exact_value(quantity.node)


def integer_text(text: str) -> int | None:
    """The integer that a tidy text writes in digits, perhaps with a unit or behind a name; None for anything else."""
    name, equals, after = text.rpartition("=")
    if equals and not re.search(r"[A-Za-z]", name):
        return None  # `100 = 101`
    body, _ = _without_unit(after.strip() if equals else text.strip(), loose_units=True)
    digits = re.fullmatch(r"([+-]?)\s*([1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.0*)?", body)
    return int(digits[1] + digits[2].replace(",", "")) if digits else None
