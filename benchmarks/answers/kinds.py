r"""What kind of answer a reference is, by rules of its own: the check that is measured must not classify for itself."""

from __future__ import annotations

import re

INTEGER = re.compile(r"^-?\d+$")
THOUSANDS = re.compile(r"^\d{1,3}(,\d{3})+$")
DECIMAL = re.compile(r"^[+-]?\d*\.\d+$")
SCIENTIFIC = re.compile(r"^-?\d+(\.\d+)?e-?\d+$")
FRACTION = re.compile(r"^(-?)\\frac\{(-?\d+)\}\{?(\d+)\}?$")
MIXED = re.compile(r"^(\d+)\\frac\{(\d+)\}\{(\d+)\}$")
BASED = re.compile(r"^(\d+)_\{?(\d)\}?$")
CHOICE = re.compile(r"^\{?\(([A-E])\)\}?$")
TEXT = re.compile(r"^\{?([A-Za-z]{3,})\}?$")
DEGREES = re.compile(r"^([\d.]+)\s*\^\s*\{?\\circ\}?$")
PERCENT = re.compile(r"^([\d.]+)\s*\\?%$")
BRACKET = re.compile(r"^[(\[][^()\[\]]*(?:\{[^{}]*\})*[^()\[\]]*[)\]]$")
RELATION = re.compile(r"=|\\in(?![a-z])|\\geqslant|\\leq|<|>")


def split(text: str) -> list[str]:
    """The pieces between commas outside brackets and braces."""
    pieces, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            pieces.append(text[start:index].strip())
            start = index + 1
    return [*pieces, text[start:].strip()]


def kind_of(reference: str) -> str:
    """One of the names below; "other" for words between formulas and damaged references."""
    reference = reference.replace("\\quad", "").strip()
    plain = {
        "integer": INTEGER, "thousands": THOUSANDS, "decimal": DECIMAL, "scientific": SCIENTIFIC, "fraction": FRACTION,
        "mixed": MIXED, "based": BASED, "choice": CHOICE, "text": TEXT, "degrees": DEGREES, "percent": PERCENT,
    }  # fmt: skip
    for name, pattern in plain.items():
        if pattern.match(reference):
            return name
    if "matrix" in reference:
        return "matrix"
    if re.search(r"\b(?:where|is an|and)\b", reference) or reference.startswith("t("):
        return "other"
    if "\\cup" in reference:
        return "union"
    if reference.startswith("\\{"):
        return "set"
    if len(split(reference)) > 1:
        return "list"
    if RELATION.search(reference):
        return "relation"
    if "\\pm" in reference:
        return "pair"
    if reference[0] in "([" and reference[-1] in ")]" and len(split(reference[1:-1])) > 1:
        return "bracket"
    return "expression"
