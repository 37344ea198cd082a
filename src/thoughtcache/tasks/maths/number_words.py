"""Numbers as words: `five`, `forty-two`, `three hundred and five`, `2 million`."""

from __future__ import annotations

import re

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
BASES = {word: number for number, word in enumerate(SMALL) if number >= 2}
MAX_WORDS = 12

BELOW_HUNDRED = "(?:[dt]|yd?)"
BELOW_THOUSAND = f"(?:{BELOW_HUNDRED}?h(?:a?{BELOW_HUNDRED})?|{BELOW_HUNDRED})"
ORDER = re.compile(f"z|{BELOW_THOUSAND}|{BELOW_THOUSAND}?s(?:a?{BELOW_THOUSAND}s)*(?:a?{BELOW_THOUSAND})?")
"""How kinds of words (`_kind`) follow each other in a number: `forty-two` is "yd", `one two` is none."""


def number_of_words(text: str) -> int | None:
    """The number that the words say, or None."""
    words = [word for word in re.split(r"[\s-]+", text.strip().casefold()) if word]
    if not words or len(words) > MAX_WORDS or not re.fullmatch(r"[A-Za-z\s-]+", text.strip()):
        return None
    total, current, sign = 0, 0, 1
    if words[0] in ("minus", "negative"):
        sign, words = -1, words[1:]
    if not ORDER.fullmatch("".join(_kind(word) for word in words)):
        return None
    scales = [SCALES[word] for word in words if word in SCALES]
    if scales != sorted(set(scales), reverse=True):
        return None  # `two thousand three million`
    for word in words:
        if word in SMALL:
            current += SMALL.index(word)
        elif word in TENS:
            current += TENS[word]
        elif word == "hundred":
            current = (current or 1) * 100
        elif word in SCALES:
            total, current = total + (current or 1) * SCALES[word], 0
    return sign * (total + current)


def _kind(word: str) -> str:
    """One letter: zero, a digit, one of the teens, a ten (`y`), hundred, a scale, "and"; `?` for all others."""
    if word in SMALL:
        index = SMALL.index(word)
        return "z" if index == 0 else "d" if index < 10 else "t"
    if word in TENS:
        return "y"
    return "s" if word in SCALES else {"hundred": "h", "and": "a"}.get(word, "?")
