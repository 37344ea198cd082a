r"""Compares two structures part by part.

Parts of a list or a set are matched in any order, each once; parts in brackets and ratios in their order. A name in
front (`x = 5` for `5`) is left out if only one of both has it. A chain of equal numbers must be true: `100 = 101` is
not 101.
"""

from __future__ import annotations

import re

from thoughtcache.tasks.maths.expressions.identity import names_of, same_equation
from thoughtcache.tasks.maths.expressions.parser import parse
from thoughtcache.tasks.maths.expressions.tokens import UndefinedError, UnreadableError
from thoughtcache.tasks.maths.structure import Leaf, Matrix, Parts, Relation, Structure
from thoughtcache.tasks.maths.values import Rules, same_value

EQUAL = ("exact", "rounded")
ANGLE = re.compile(
    r"^\\(?:angle|triangle|overline|overrightarrow|widehat|vec)\s*\{?\s*(?:[A-Za-z](?:_\{?\w+\}?)?'*\s*)+\}?$"
)
NAME = re.compile(
    r"^[|(]?\s*(?:\\text\{[^{}]*\}|\\?[A-Za-z]+)(?:_\{?[\w\\ ]+\}?)?'*(?:\s*\([^()]*\))?(?:\([^()]*\))?\s*[|)]?$"
)
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


def same_structure(expected: Structure, given: Structure, rules: Rules) -> str:
    """The reason of a verdict: "exact" or "rounded" if they are equal, "different" or "other_form" if not.

    Raises:
        UnreadableError: if a part cannot be read.
        TooLargeError: if a part would take too long to compute.
    """
    if isinstance(expected, Relation) or isinstance(given, Relation):
        return _relations(expected, given, rules)
    if isinstance(expected, Matrix) or isinstance(given, Matrix):
        return _matrices(expected, given, rules)
    if isinstance(expected, Parts):
        return _parts(expected, given, rules)
    return same_value(expected.text, given.text, rules) if isinstance(given, Leaf) else "other_form"


def _parts(expected: Parts, given: Structure, rules: Rules) -> str:
    if expected.kind == "union" and isinstance(given, Parts) and given.kind == "list":
        intervals = [_interval(item) for item in given.items if isinstance(item, Relation)]
        known = tuple(interval for interval in intervals if interval is not None)
        given = Parts("union", known) if len(known) == len(given.items) else given
    if not isinstance(given, Parts) or not _kinds_agree(expected, given):
        return "other_form"
    if expected.kind == "set":
        expected, given = _distinct(expected), _distinct(given)
    if len(expected.items) != len(given.items):
        return "other_form"
    if expected.kind in ("bracket", "ratio"):
        return _all([same_structure(*pair, rules) for pair in zip(expected.items, given.items, strict=True)])
    left = list(given.items)
    reasons = []
    for item in expected.items:
        found = [(index, same_structure(item, other, rules)) for index, other in enumerate(left)]
        index, reason = next((pair for pair in found if pair[1] in EQUAL), (-1, "different"))
        if index < 0:
            return reason
        left.pop(index)
        reasons.append(reason)
    return _all(reasons)


def _kinds_agree(expected: Parts, given: Parts) -> bool:
    """A list may be written as a set and a set as a list; brackets of two parts must be the same."""
    if expected.kind in ("list", "set"):
        return given.kind in ("list", "set")
    if expected.kind != given.kind:
        return False
    return expected.brackets == given.brackets or (expected.kind == "bracket" and len(expected.items) > 2)


def _distinct(parts: Parts) -> Parts:
    return Parts(parts.kind, tuple(dict.fromkeys(parts.items)), parts.brackets)


def _matrices(expected: Structure, given: Structure, rules: Rules) -> str:
    if not isinstance(expected, Matrix) or not isinstance(given, Matrix):
        return "other_form"
    if [len(row) for row in expected.rows] != [len(row) for row in given.rows]:
        return "other_form"
    pairs = [pair for rows in zip(expected.rows, given.rows, strict=True) for pair in zip(*rows, strict=True)]
    return _all([same_structure(*pair, rules) for pair in pairs])


def _all(reasons: list[str]) -> str:
    """Equal if all are equal; then rounded if one is."""
    wrong = next((reason for reason in reasons if reason not in EQUAL), None)
    return wrong or ("rounded" if "rounded" in reasons else "exact")


def _relations(expected: Structure, given: Structure, rules: Rules) -> str:
    if not isinstance(expected, Relation):
        assert isinstance(given, Relation)
        return _without_name(expected, given, rules)
    interval = _interval(expected)
    if expected.ops == ("in",) and isinstance(given, Relation):
        return same_structure(expected.sides[1], given, rules)
    if not isinstance(given, Relation):
        if expected.ops == ("in",) or (set(expected.ops) == {"="} and _is_name(expected.sides[0])):
            return same_structure(expected.sides[-1], given, rules)
        return "other_form" if interval is None else same_structure(interval, given, rules)
    if interval is not None:
        other = _interval(given)
        if other is None:
            return same_structure(interval, given.sides[1], rules) if given.ops == ("in",) else "other_form"
        return _all([_same_names(expected, given), same_structure(interval, other, rules)])
    if expected.ops == given.ops == ("=",):
        return _equations(expected, given, rules)
    for candidate in (given, _flip(given)):
        if candidate is not None and expected.ops == candidate.ops:
            sides = zip(expected.sides, candidate.sides, strict=True)
            reason = _all([same_structure(*pair, rules) for pair in sides])
            if reason in EQUAL:
                return reason
    return "different"


def _same_names(expected: Relation, given: Relation) -> str:
    def name(relation: Relation) -> str:
        return next(side.text for side in relation.sides if isinstance(side, Leaf) and _is_name(side))

    return "exact" if name(expected).replace(" ", "") == name(given).replace(" ", "") else "different"


def _without_name(expected: Structure, given: Relation, rules: Rules) -> str:
    """An answer with a name, or a chain of equal values, for a reference without."""
    if given.ops == ("in",):
        return same_structure(expected, given.sides[1], rules)
    if set(given.ops) != {"="}:
        interval = _interval(given)
        return "other_form" if interval is None else same_structure(expected, interval, rules)
    sides = given.sides
    if _names_something(sides[0], expected):
        sides = sides[1:]
    reasons = [same_structure(expected, side, rules) for side in sides]
    return _all(reasons)


def _names_something(side: Structure, expected: Structure) -> bool:
    """Whether a left side only says what follows: a name, or for a number as reference anything with names."""
    if not isinstance(side, Leaf):
        return (
            isinstance(side, Parts) and side.kind in ("bracket", "list") and all(_is_name(item) for item in side.items)
        )
    if _is_name(side):
        return True
    try:
        names = names_of(parse(side.text))
        wanted = names_of(parse(expected.text)) if isinstance(expected, Leaf) else frozenset()
    except UnreadableError:
        return bool(re.search(r"[A-Za-z]", side.text)) and not isinstance(expected, Leaf)
    return bool(names) and not wanted


def _is_name(side: Structure) -> bool:
    if not isinstance(side, Leaf) or side.text.strip() in ("e", "i", r"\pi", "pi"):
        return False
    return NAME.match(side.text) is not None or ANGLE.match(side.text) is not None


def _equations(expected: Relation, given: Relation, rules: Rules) -> str:
    """Two equations: the same name and value, or the same but for a factor and the side on which terms stand."""
    (left, right), (other_left, other_right) = expected.sides, given.sides
    if isinstance(left, Leaf) and isinstance(other_left, Leaf) and _is_name(left):
        if left.text.replace(" ", "") == other_left.text.replace(" ", ""):
            return same_structure(right, other_right, rules)
        if _is_name(other_left) and not (_is_formula(left) and _is_formula(other_left)):
            return "different"
    leaves = [side for side in (left, right, other_left, other_right) if isinstance(side, Leaf)]
    if len(leaves) < 4:
        return "different"
    nodes = [parse(leaf.text) for leaf in leaves]
    try:
        return "exact" if same_equation((nodes[0], nodes[1]), (nodes[2], nodes[3])) else "different"
    except UndefinedError:
        return "different"


def _is_formula(side: Leaf) -> bool:
    try:
        parse(side.text)
    except UnreadableError:
        return False
    return True


def _flip(relation: Relation) -> Relation | None:
    if any(op not in FLIPPED for op in relation.ops):
        return None
    return Relation(tuple(FLIPPED[op] for op in reversed(relation.ops)), tuple(reversed(relation.sides)))


def _interval(relation: Relation) -> Parts | None:
    """`x > 3` is (3, infinity), `1 <= x < 2` is [1, 2); None for relations that are no interval of one name."""
    flipped = _flip(relation)
    if flipped is None or "=" in relation.ops or "!=" in relation.ops:
        return None
    ordered = relation if relation.ops[0][0] == "<" else flipped
    if any(op[0] != "<" for op in ordered.ops):
        return None
    open_end = ["(" if op == "<" else "[" for op in ordered.ops]
    close_end = [")" if op == "<" else "]" for op in ordered.ops]
    infinity = Leaf(r"\infty")
    if len(ordered.sides) == 3 and _is_name(ordered.sides[1]):
        return Parts("bracket", (ordered.sides[0], ordered.sides[2]), open_end[0] + close_end[1])
    if len(ordered.sides) != 2:
        return None
    if _is_name(ordered.sides[0]) and not _is_name(ordered.sides[1]):
        return Parts("bracket", (Leaf(r"-\infty"), ordered.sides[1]), "(" + close_end[0])
    if _is_name(ordered.sides[1]) and not _is_name(ordered.sides[0]):
        return Parts("bracket", (ordered.sides[0], infinity), open_end[0] + ")")
    return None
