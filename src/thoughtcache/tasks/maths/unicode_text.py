r"""Writes the signs of Unicode as LaTeX, so that every later step knows one spelling.

    as_latex("−1½")        # "-1\frac{1}{2}"
    as_latex("４２１０₅")    # "4210_{5}"

Digits of every script become 0 to 9; dashes, spaces, quotes, fractions, raised and lowered digits, Greek letters and
operators become what LaTeX writes for them. Other letters, accents included, stay as they are.
"""

from __future__ import annotations

import re
import unicodedata

SIGNS = {
    **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
    **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f", ""),
    **dict.fromkeys("’‘‛ʹ′＇", "'"),
    **dict.fromkeys("“”„‟″＂", '"'),
    **dict.fromkeys("×✕✖∗⋅·∙•⨯", r"\cdot "),
    **dict.fromkeys("÷", r"\div "),
    **dict.fromkeys("∕⁄／", "/"),
    **dict.fromkeys("，、﹐", ","),
    "٫": ".",
    "٬": ",",
    "；": ";",
    "：": ":",
    "．": ".",
    "＝": "=",
    "＋": "+",
    "（": "(",
    "）": ")",
    "［": "[",
    "］": "]",
    "｛": "{",
    "｝": "}",
    "％": r"\%",
    "＄": r"\$",
    "°": r"^{\circ}",
    "º": r"^{\circ}",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "√": r"\sqrt ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℏ": r"\hbar ",
    "ϕ": r"\phi ",
    "ϵ": r"\epsilon ",
}
"""What a sign is written as."""

GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
)  # fmt: skip
NORMAL_MINUS = str.maketrans("⁺⁻⁼⁽⁾₊₋₌₍₎", "+-=()+-=()")
RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₙₘᵢⱼ]+")
ROOT = re.compile(r"\\sqrt +(\d+)")


def as_latex(text: str) -> str:
    """The same text in the signs of a keyboard and the commands of LaTeX."""
    if text.isascii():
        return text
    text = RAISED.sub(lambda run: f"^{{{_normal(run[0])}}}", text)
    text = LOWERED.sub(lambda run: f"_{{{_normal(run[0])}}}", text)
    return ROOT.sub(r"\\sqrt{\1}", "".join(_written(character) for character in text))


def _normal(run: str) -> str:
    return unicodedata.normalize("NFKC", run.translate(NORMAL_MINUS))


def _written(character: str) -> str:
    if character.isascii():
        return character
    if character in SIGNS:
        return SIGNS[character]
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    decomposed = unicodedata.normalize("NFKC", character)
    if "\u2044" in decomposed:  # one of the fractions
        above, _, below = decomposed.partition("\u2044")
        return rf"\frac{{{above}}}{{{below}}}" if above and below else decomposed.replace("\u2044", "/")
    return _greek(character) or decomposed


def _greek(character: str) -> str:
    name = unicodedata.name(unicodedata.normalize("NFKC", character)[:1] or " ", "")
    kind, _, letter = name.rpartition(" LETTER ")
    letter = letter.casefold().replace("lamda", "lambda").removeprefix("final ")
    if letter not in GREEK or not kind.startswith("GREEK"):
        return ""
    return rf"\{letter.capitalize() if kind.endswith('CAPITAL') else letter} "
