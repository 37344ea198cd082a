r"""What kind of answer a data set has, and how an answer of that kind is judged without any computer algebra.

A declared type decides what is compared; "auto" takes it from the reference. Each type refuses references that are none
of its kind, before training.

    aime         an integer from 0 to 999, compared as an integer and in no other way
    integer      an exact integer: `1,072`, `10^3`, `72.00`
    number       a number; decimal references are compared to the digits that they show
    percentage   a number in percent, with or without the sign
    expression   a formula
    tuple, list, set, interval, matrix    parts in order, in any order, each once, with both ends, in rows
    equation     an equation or inequality, but for a factor and the order of its sides
    choice       one letter: `B`, `(B)`, `\text{(B) } 27`
    text         words, without regard to capitals and spaces
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from thoughtcache.tasks.maths.boxes import MAX_ANSWER_CHARACTERS
from thoughtcache.tasks.maths.compare import same_structure
from thoughtcache.tasks.maths.expressions.tokens import CONSTANTS, FUNCTIONS, SPELLED
from thoughtcache.tasks.maths.latex import literal, tidy
from thoughtcache.tasks.maths.limits import MAX_NESTING, refusal
from thoughtcache.tasks.maths.number_words import number_of_words
from thoughtcache.tasks.maths.quantity import integer_text, read_quantity, value_of
from thoughtcache.tasks.maths.structure import Leaf, Matrix, Parts, Relation, Structure, read_structure
from thoughtcache.tasks.maths.values import Rules

ANSWER_TYPES = (
    "auto", "aime", "integer", "number", "percentage", "expression", "tuple", "list", "set", "interval", "equation",
    "choice", "text", "matrix",
)  # fmt: skip

AIME_LIMIT = 999
CHOICE = re.compile(
    r"^\s*(?:(?:the\s+)?(?:answer|option|choice)(?:\s+is)?\s*(?::\s*)?)?(?:[(\[]\s*)?([A-Za-z])"
    r"(?:\s*[)\].:](?:\s.*|\W*)|\W*)$",
    re.IGNORECASE | re.DOTALL,
)
SECOND_CHOICE = re.compile(r"^\W*(?:or|and|OR|AND)\b|\([A-Z]\)|,\s*[A-Z]\b")
"""Behind the letter: another letter in parentheses or alone, so that nothing was chosen."""

MARKED_CHOICE = re.compile(r"^\(\s*[A-Z]\s*\)$")
WORDS = re.compile(r"^[^\W\d_][^\W\d_]+(?:[\s'.,/-]+[^\W\d_]+)*[.!]?$")
WRAPPED = re.compile(r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A reference that was read.

    Attributes:
        kind: a type, never "auto" or "tuple" and the like: "aime", "choice", "text" or "structure".
        text: tidy text.
        literal: the text by which equal answers are found at once.
        structure: its parts; None for kinds that have none.
        rules: what counts as equal.
    """

    kind: str
    text: str
    literal: str
    structure: Structure | None
    rules: Rules


@lru_cache(maxsize=4096)
def read_reference(reference: str, answer_type: str = "auto") -> Reference:
    """Read a reference as its type.

    Raises:
        ValueError: if the type is unknown, or the reference is none of this type, or as long or deep as no answer is.
    """
    if answer_type not in ANSWER_TYPES:
        raise ValueError(f"answer_type is {answer_type!r}, allowed: {', '.join(ANSWER_TYPES)}")
    if refused := refusal(reference):
        raise ValueError(
            f"reference {reference!r:.80} is {refused.replace('_', ' ')}, allowed: {MAX_ANSWER_CHARACTERS} characters "
            f"and {MAX_NESTING} brackets in each other; drop examples without a short final answer"
        )
    text = tidy(reference)
    kind = _kind_of(text) if answer_type == "auto" else answer_type
    if kind in ("choice", "text", "aime"):
        _check_plain(kind, text, reference)
        return Reference(kind=kind, text=text, literal=literal(reference), structure=None, rules=Rules())
    structure = _as_type(read_structure(text, merge_thousands=kind not in ("list", "tuple", "set")), kind)
    _check_structure(kind, structure, reference)
    rules = Rules(rounding=kind != "integer", percentage=kind == "percentage")
    return Reference(kind="structure", text=text, literal=literal(reference), structure=structure, rules=rules)


def same_answer(reference: Reference, answer: str, answer_type: str = "auto") -> str:
    """The reason of a verdict on an answer: "literal", "exact", "rounded", "different" or "other_form".

    Raises:
        UnreadableError: if the answer, or the reference, cannot be read.
        TooLargeError: if the answer would take too long to compute.
    """
    text = tidy(answer)
    if reference.kind == "choice":
        letter = CHOICE.match(_words(text))
        wanted = CHOICE.match(_words(reference.text))
        assert wanted is not None
        if letter is None or SECOND_CHOICE.search(_words(text)[letter.end(1) :]):
            return "other_form"
        return "literal" if letter[1].casefold() == wanted[1].casefold() else "different"
    if reference.kind == "text":
        return "literal" if _plain(text) == _plain(reference.text) else "different"
    if reference.kind == "aime":
        found = integer_text(text)
        return "other_form" if found is None else ("exact" if found == integer_text(reference.text) else "different")
    if literal(answer) == reference.literal:
        return "literal"
    assert reference.structure is not None
    return _same_structure(reference, reference.structure, text, answer_type)


def _same_structure(reference: Reference, structure: Structure, text: str, answer_type: str) -> str:
    is_list = isinstance(structure, Parts)
    reason = "different"
    for merge in (False, True) if is_list else (True,):
        given = read_structure(text, merge_thousands=merge)
        if answer_type in ("tuple", "set"):
            given = _as_type(given, answer_type)
        reason = same_structure(structure, given, reference.rules)
        if reason in ("exact", "rounded"):
            break
    return reason


def _kind_of(text: str) -> str:
    if MARKED_CHOICE.match(_words(text).strip()):
        return "choice"
    return "text" if _is_text(text) else "structure"


def _is_text(text: str) -> bool:
    """Words that are neither a number nor known names of mathematics: `Evelyn`, but not `five`, `pi` or `xy`."""
    words = _words(text).strip()
    if not WORDS.match(words) or number_of_words(words) is not None:
        return False
    runs = re.findall(r"[^\W\d_]+", words)
    return any(len(run) > 2 for run in runs) and not any(
        run in FUNCTIONS or run in CONSTANTS or run in SPELLED for run in runs
    )


def _words(text: str) -> str:
    return WRAPPED.sub(r"\1", text)


def _plain(text: str) -> str:
    plain = re.sub(r"[\s{}]|[.,!?]$", "", _words(text).casefold())
    return re.sub(r"^(?:the|an)(?=\w{3})", "", plain) if " " in _words(text).strip() else plain


def _as_type(structure: Structure, kind: str) -> Structure:
    """A list without brackets as the tuple or set that is meant."""
    if isinstance(structure, Parts) and structure.kind == "list":
        if kind == "tuple":
            return Parts("bracket", structure.items, "()")
        if kind == "set":
            return Parts("set", structure.items)
    return structure


def _check_plain(kind: str, text: str, reference: str) -> None:
    if kind == "aime":
        value = integer_text(text)
        if value is None or not 0 <= value <= AIME_LIMIT:
            raise ValueError(
                f"reference {reference!r:.80} is no integer from 0 to {AIME_LIMIT}; use the type 'integer'"
            )
    if kind == "choice" and CHOICE.match(_words(text)) is None:
        raise ValueError(f"reference {reference!r:.80} is no letter of a choice; use the type 'text' or 'auto'")


def _check_structure(kind: str, structure: Structure, reference: str) -> None:
    fits = {
        "tuple": isinstance(structure, Parts) and structure.kind == "bracket",
        "set": isinstance(structure, Parts) and structure.kind == "set",
        "interval": isinstance(structure, Relation)
        or (isinstance(structure, Parts) and structure.kind in ("bracket", "union")),
        "matrix": isinstance(structure, Matrix),
        "equation": isinstance(structure, Relation) or (isinstance(structure, Parts) and structure.kind == "list"),
        "integer": isinstance(structure, Leaf) and _is_whole(structure.text),
        "number": isinstance(structure, Leaf),
        "percentage": isinstance(structure, Leaf),
    }
    if not fits.get(kind, True):
        raise ValueError(f"reference {reference!r:.80} is no {kind}; declare another answer type, or 'auto'")


def _is_whole(text: str) -> bool:
    from thoughtcache.tasks.maths.expressions.tokens import TooLargeError, UnreadableError

    try:
        value = value_of(read_quantity(text))
    except (UnreadableError, TooLargeError):
        return False
    return value is not None and value.denominator == 1
