r"""Reads what an answer consists of: parts, brackets, unions, matrices, relations.

    read_structure("(1, 2]")                # Parts("()"...)
    read_structure(r"3 \pm \sqrt{2}")       # a list of two

Parts are kept as text; `quantity.py` reads them. A list is what stands without brackets: `1, 2` or `1 and 2`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPENING, CLOSING = "([{", ")]}"
THOUSANDS = re.compile(r"(?<![\d.])(?<!\d,)[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
"""`1,072`, but not `1,2`, `0,072` or `1,0725`."""

CONJUNCTION = re.compile(r"\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|&(?!amp)")
RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|\\in(?![A-Za-z])|<=|>=|!=|==|[=<>]")
RELATION_NAMES = {r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in", "==": "="}
MATRIX = re.compile(
    r"^\\begin\{((?:[pbvBV]|small)?matrix|array)\}(?:\{[lcr|\s]*\})?(.*)\\end\{\1\}(?:\s*\^\s*\{?\s*(?:T|\\top)\s*\}?)?$",
    re.DOTALL,
)
ROW = re.compile(r"\\\\(?:\[[^\]]*\])?|\\(?=[\s\d.+-])|\\cr(?![a-z])")
PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")


@dataclass(frozen=True, slots=True)
class Leaf:
    """Text without parts."""

    text: str


@dataclass(frozen=True, slots=True)
class Parts:
    """Several parts; `kind` is "list", "set", "bracket" (a tuple or an interval), "ratio" or "union".

    Attributes:
        kind: what they are.
        items: the parts.
        brackets: both brackets of a "bracket", as `(]`.
    """

    kind: str
    items: tuple[Structure, ...]
    brackets: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple[Structure, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """`sides[0] ops[0] sides[1] ...`, with "=", "<", "<=", ">", ">=", "!=" and "in"."""

    ops: tuple[str, ...]
    sides: tuple[Structure, ...]


Structure = Leaf | Parts | Matrix | Relation


def read_structure(text: str, *, merge_thousands: bool = True) -> Structure:
    """The structure of a tidy text.

    Args:
        text: what `latex.tidy` returned.
        merge_thousands: read `1,072` outside brackets as one number; else as two.
    """
    text = _exact_side(text.strip())
    if matrix := MATRIX.match(text):
        return _matrix(matrix[2])
    if merge_thousands:
        text = THOUSANDS.sub(lambda number: number[0].replace(",", ""), text) if not _has_brackets(text) else text
    pieces = _split(CONJUNCTION.sub(",", text), ",;")
    if not any(pieces):
        return Leaf(text)  # `or` alone is no list
    if len(pieces) > 1:
        items = tuple(item for piece in pieces if piece for item in _flat(read_structure(piece, merge_thousands=False)))
        return items[0] if len(items) == 1 else Parts("list", items)
    relation = _relation(text)
    if relation is not None:
        return relation
    if (union := _split_command(text, r"\cup")) and len(union) > 1:
        return Parts("union", tuple(read_structure(piece, merge_thousands=False) for piece in union))
    inside = _bracketed(text)
    if inside is not None:
        return inside
    ratio = _split(text, ":")
    if len(ratio) > 1 and all(ratio):
        return Parts("ratio", tuple(Leaf(piece) for piece in ratio))
    return _signs(text)


def _exact_side(text: str) -> str:
    r"""`\sqrt{2} \approx 1.41` gives the root; `x \approx 1.41` and `\approx 1.41` give the number."""
    exact, sign, rounded = text.partition("\\approx ")
    if not sign:
        return text
    return rounded.strip() if re.fullmatch(r"(?:\\?[A-Za-z]+(?:_\w+)?\s*=?)?\s*", exact) else exact.strip()


def _matrix(body: str) -> Matrix:
    rows = [row for row in ROW.split(body) if row.strip()]
    return Matrix(tuple(tuple(Leaf(entry.strip()) for entry in row.split("&")) for row in rows))


def _flat(item: Structure) -> tuple[Structure, ...]:
    return item.items if isinstance(item, Parts) and item.kind == "list" else (item,)


def _signs(text: str) -> Structure:
    r"""`a \pm b` is two answers, with the upper and the lower signs."""
    if not PLUS_MINUS.search(text):
        return Leaf(text)
    upper = PLUS_MINUS.sub(lambda sign: "+" if sign[1] == "pm" else "-", text)
    lower = PLUS_MINUS.sub(lambda sign: "-" if sign[1] == "pm" else "+", text)
    return Parts("list", (Leaf(upper.strip().removeprefix("+")), Leaf(lower.strip().removeprefix("+"))))


def _relation(text: str) -> Relation | None:
    found = [match for match in RELATION.finditer(text) if _depth(text, match.start()) == 0]
    if not found:
        return None
    starts = [0, *(match.end() for match in found)]
    ends = [*(match.start() for match in found), len(text)]
    sides = [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    ops = tuple(RELATION_NAMES.get(match[0], match[0]) for match in found)
    if not all(sides):
        return None
    return Relation(ops, tuple(read_structure(side, merge_thousands=True) for side in sides))


def _bracketed(text: str) -> Structure | None:
    r"""`(1,2]`, `\{1,2\}`; None if the brackets do not enclose everything, or enclose one expression."""
    if text.startswith("\\{") and text.endswith("\\}") and _closing(text, 1) == len(text) - 1:
        body = text[2:-2].strip()
        inside = [piece for piece in _split(CONJUNCTION.sub(",", body), ",;") if piece]
        if body and not inside:
            return None  # `\{or\}` is not the empty set
        parts = [part for piece in inside for part in _flat(read_structure(piece, merge_thousands=False))]
        return Parts("set", tuple(parts))
    if text in (r"\emptyset", r"\{\}"):
        return Parts("set", ())
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]" or _closing(text, 0) != len(text) - 1:
        return None
    pieces = _split(text[1:-1], ",;")
    if len(pieces) < 2 or not all(pieces):
        return None
    items = tuple(read_structure(piece, merge_thousands=False) for piece in pieces)
    return Parts("bracket", items, text[0] + text[-1])


def _has_brackets(text: str) -> bool:
    return any(bracket in text for bracket in ("(", "[", "\\{"))


def _split(text: str, separators: str) -> list[str]:
    """The pieces between separators outside all brackets."""
    pieces, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0 and character in separators:
            pieces.append(text[start:index].strip())
            start = index + 1
    return [*pieces, text[start:].strip()]


def _split_command(text: str, command: str) -> list[str]:
    places = [match.start() for match in re.finditer(re.escape(command) + r"(?![A-Za-z])", text)]
    places = [place for place in places if _depth(text, place) == 0]
    starts = [0, *(place + len(command) for place in places)]
    return [text[start:end].strip() for start, end in zip(starts, [*places, len(text)], strict=True)]


def _depth(text: str, place: int) -> int:
    return sum((character in OPENING) - (character in CLOSING) for character in text[:place])


def _closing(text: str, opening: int) -> int:
    """Where the bracket at `opening` closes; any closing bracket closes any opening one, as in `(1,2]`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] in OPENING) - (text[index] in CLOSING)
        if depth == 0:
            return index
    return -1
