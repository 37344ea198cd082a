"""Names of units, and which of them are the same."""

from __future__ import annotations

import re

SAME = {
    "usd": "usd dollar dollars buck bucks",
    "cent": "cent cents",
    "eur": "€ euro euros",
    "gbp": "£ pound pounds",
    "%": "% percent",
    "deg": "deg degree degrees",
    "am": "am a.m. a.m",
    "pm": "pm p.m. p.m",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "mph": "mph",
    "ms": "ms millisecond milliseconds",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs",
    "L": "L l liter liters litre litres",
    "mL": "mL ml milliliter milliliters millilitre millilitres",
    "J": "J joule joules",
    "eV": "eV",
    "N": "N newton newtons",
    "W": "W watt watts",
    "V": "V volt volts",
    "A": "A ampere amperes amp amps",
    "K": "K kelvin kelvins",
    "C": "C celsius",
    "Hz": "Hz hertz",
    "Pa": "Pa pascal pascals",
    "ohm": "ohm ohms Omega",
    "mol": "mol mole moles",
    "T": "T tesla",
    "rad": "rad radian radians",
    "erg": "erg ergs",
    "": "unit units",
}
KNOWN = {spelling: name for name, spellings in SAME.items() for spelling in spellings.split()}
"""Spelling -> name of the unit."""

NO_UNITS = frozenset((
    "and", "or", "not", "if", "is", "are", "but", "mod", "modulo", "times", "more", "less", "than", "over", "divided",
    "plus", "minus", "except", "only", "when", "where", "for", "base", "squared", "cubed", "either", "between",
    "unless", "maybe", "about", "approximately", "nothing", "none", "no", "to", "from", "with", "without", "at",
    "thousand", "hundred", "million", "billion", "trillion", "sin", "cos", "tan", "log", "ln", "exp", "sqrt", "pi",
    "dozen", "dozens", "pairs", "score",
))  # fmt: skip
"""Words that change what stands before them."""

MAX_WORDS = 4
WORD = re.compile(r"%|[^\W\d_]+(?:\.[^\W\d_]+)*\.?")
POWER = re.compile(r"\^\s*\{?\s*(-?\d)\s*\}?")


def unit_name(text: str) -> str | None:
    """One name for a unit, however it is spelled; "" for words that are no known unit; None if it cannot be a unit.

    `cm^2`, `square centimeters` and `sq cm` are one unit.
    """
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text.replace("~", " ").replace("\\deg", "deg").replace("\\%", "%"))
    words = WORD.findall(text)
    rest = WORD.sub("", POWER.sub("", text))
    if not words or len(words) > MAX_WORDS or re.search(r"[^\s/*.()\\{}-]", rest):
        return None
    if any(word.casefold() in NO_UNITS for word in words):
        return None
    if any(len(word) < 3 and word not in KNOWN and word.casefold() not in ("sq", "cu", "of") for word in words):
        return None
    return _canonical(text, words)


def _canonical(text: str, words: list[str]) -> str:
    power = {"square": "^2", "sq": "^2", "sq.": "^2", "cubic": "^3", "cu": "^3"}.get(words[0].casefold(), "")
    named = words[1:] if power else words
    known = [
        KNOWN.get(word, KNOWN.get(word.casefold())) for word in named if word.casefold() not in ("per", "of", "the")
    ]
    if not known or any(name is None for name in known):
        return ""
    if not power:
        powers = POWER.findall(text)
        power = f"^{powers[0]}" if powers else ""
    return "*".join(name for name in known if name) + power if any(known) else ""
