r"""Wrong answers: what is near a reference and is not it, made by rule. Every form is a whole completion."""

from __future__ import annotations

import re

from benchmarks.answers import number_neighbours as numbers
from benchmarks.answers.kinds import CHOICE, TEXT, kind_of, split
from benchmarks.answers.rewrites import box


def neighbours(reference: str) -> list[str]:
    """Completions with another answer, or with none."""
    inside = BY_KIND.get(kind_of(reference), _expression)(reference.replace("\\quad", "").strip())
    wrong = [text for text in dict.fromkeys(inside) if text != reference]
    return [
        *map(box, wrong),
        rf"\boxed{{{reference}}} and then \boxed{{{reference}",
        rf"\boxed{{{reference}}}, no, rather \boxed{{987654321}}",
        rf"<think>\boxed{{{reference}}}</think> I cannot say.",
    ]


def _choice(text: str) -> list[str]:
    own = CHOICE.match(text)[1]
    others = [letter for letter in "ABCDEF" if letter != own]
    return [
        *(f"({letter})" for letter in others),
        rf"\text{{{others[0]}}}",
        f"({own}) or ({others[0]})",
        "27",
        f"{others[1]}. {own}",
    ]


def _text(text: str) -> list[str]:
    word = TEXT.match(text)[1]
    return [
        word[::-1],
        word[:-1],
        f"{word}s",
        f"not {word}",
        f"{word} or Carla",
        "Carla",
        "",
        "5",
        f"{word}{word}",
        f"x = {len(word)}",
    ]


def _bracket(text: str) -> list[str]:
    parts, begin, end = split(text[1:-1]), text[0], text[-1]
    forms = [f"{begin}{', '.join(_changed(parts, index))}{end}" for index in range(min(len(parts), 4))]
    forms += [
        f"{begin}{', '.join(parts[:-1])}{end}",
        f"{begin}{', '.join([*parts, '1'])}{end}",
        ", ".join(parts),
        rf"\{{{', '.join(parts)}\}}",
        parts[0],
    ]
    if parts != parts[::-1]:
        forms.append(f"{begin}{', '.join(reversed(parts))}{end}")
    if len(parts) == 2:
        other = {"(": "[", "[": "(", ")": "]", "]": ")"}
        forms += [f"{other[begin]}{', '.join(parts)}{end}", f"{begin}{', '.join(parts)}{other[end]}"]
    return forms


def _changed(parts: list[str], index: int) -> list[str]:
    changed = "0" if "infty" in parts[index] else f"{parts[index]}+1"
    return [*parts[:index], changed, *parts[index + 1 :]]


def _list(text: str) -> list[str]:
    parts = split(text)
    if any(bracket in text for bracket in ("(", "=")):
        changed = [parts[:-1], parts[1:], [*parts, "77"], [*parts, parts[0]], [parts[0]] * len(parts), parts[:1]]
        return (
            [", ".join(form) for form in changed if sorted(form) != sorted(parts)]
            + [rf"({form})" for form in (text, parts[0] + "," + parts[0])]
            + ["0", "1, 2, 3, 4, 5, 6, 7"]
        )
    forms = [", ".join(_changed(parts, index)) for index in range(min(len(parts), 4))]
    forms += [
        ", ".join(parts[:-1]),
        ", ".join(parts[1:]),
        parts[0],
        parts[-1],
        ", ".join([*parts, "77"]),
        f"({', '.join(parts)})",
        f"[{', '.join(parts)}]",
    ]
    return forms


def _set(text: str) -> list[str]:
    parts = split(text.removeprefix("\\{").removesuffix("\\}"))
    return [
        rf"\{{{', '.join(form)}\}}"
        for form in (
            _changed(parts, 0),
            _changed(parts, -1),
            parts[:-1],
            parts[1:],
            [*parts, "77"],
            [f"-({parts[0]})", *parts[1:]],
        )
    ] + [f"({', '.join(parts)})", parts[0], r"\emptyset"]


def _union(text: str) -> list[str]:
    parts = [part.strip(" .") for part in text.split("\\cup")]
    other = parts[0].replace("(", "[", 1) if parts[0].startswith("(") else parts[0].replace("[", "(", 1)
    return [
        parts[0],
        parts[1],
        rf"{other}\cup{parts[1]}",
        rf"{parts[0]}\cup(77,78)",
        rf"{text.strip('.')}\cup(77,78)",
        rf"{parts[0]}, {parts[1]}",
        rf"{parts[0]}\cap{parts[1]}",
        r"(-\infty,\infty)",
        r"\emptyset",
    ]


def _relation(text: str) -> list[str]:
    operator = next(sign for sign in ("\\geqslant", "\\in", "=") if sign in text)
    left, right = text.split(operator, 1)
    if operator == "\\in":
        return [*_bracket(right.strip())]
    scaled = [] if right.strip() == "0" else [f"{left} {operator} -({right})", f"{left} {operator} 2({right})"]
    return [
        *scaled,
        f"{left} {operator} {right} + 1",
        f"{left} + 1 {operator} {right} - 1",
        f"{left} < {right}",
        f"{left} {operator} ({right})^2+1",
        f"{left}",
        "0",
        f"{left} {operator} 77",
        f"{left} {operator} {right} + 77 z",
    ]


def _pair(text: str) -> list[str]:
    plus, minus = text.replace("\\pm", "+"), text.replace("\\pm", "-")
    return [
        plus,
        minus,
        f"{plus}, {plus}",
        f"({plus}, {minus})",
        f"{plus}+1, {minus}",
        f"{text} + 1",
        f"-({plus}), {minus}",
        f"{plus}, {minus}, 1",
        "0",
    ]


def _matrix(text: str) -> list[str]:
    body = text.replace("\\\\", "\\").split("}", 1)[1].rsplit("\\end", 1)[0]
    lines = [line for line in body.split("\\") if line]
    shapes = [
        [lines[0] + "+1", *lines[1:]],
        [*lines[:-1], lines[-1] + "+1"],
        lines[:-1],
        [*lines, lines[0]],
        lines[::-1],
        ["&".join(lines)],
        [f"-({lines[0]})" if "&" not in lines[0] else "7&7", *lines[1:]],
        ["0"] * len(lines),
    ]
    whole = [r"\begin{pmatrix}" + r" \\ ".join(shape) + r"\end{pmatrix}" for shape in shapes if shape != lines]
    return [*whole, f"({', '.join(lines)})", ", ".join(lines)]


def _expression(text: str) -> list[str]:
    forms = [
        f"{text} + 1",
        f"{text} - 1",
        f"2({text})",
        f"-({text})",
        f"({text})^2 + 7",
        f"{text} + q_7",
        f"{text}, 1",
        f"({text}, {text})",
        rf"\frac{{{text}}}{{3}}",
        "0",
        f"({text}) q_7",
    ]
    digit = re.search(r"\d", text)
    if digit:
        forms.append(f"{text[: digit.start()]}{(int(digit[0]) + 1) % 10}{text[digit.end() :]}")
    return forms


BY_KIND = {
    "integer": numbers.integer,
    "thousands": numbers.integer,
    "fraction": numbers.fraction,
    "mixed": numbers.mixed,
    "decimal": numbers.decimal,
    "scientific": numbers.scientific,
    "based": numbers.based,
    "choice": _choice,
    "text": _text,
    "degrees": numbers.degrees,
    "percent": numbers.percent,
    "bracket": _bracket,
    "list": _list,
    "set": _set,
    "union": _union,
    "relation": _relation,
    "pair": _pair,
    "matrix": _matrix,
    "other": lambda text: ["0", "1", "x", f"{text} + 1", "(0, 1)", "f(x) = 0", r"\emptyset", "2, 3"],
}
