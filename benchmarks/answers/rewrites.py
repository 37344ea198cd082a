r"""Right answers: a reference in other forms, made by rule. Every form is a whole completion."""

from __future__ import annotations

from benchmarks.answers import number_rewrites as numbers
from benchmarks.answers.kinds import CHOICE, TEXT, kind_of, split

WIDE = str.maketrans("0123456789", "".join(chr(0xFF10 + digit) for digit in range(10)))


def box(text: str) -> str:
    """The text as the content of a box."""
    return rf"\boxed{{{text}}}"


def rewrites(reference: str, answer_type: str = "auto") -> list[str]:
    """Completions with the same answer, the plain box first."""
    kind = kind_of(reference)
    reference = reference.replace("\\quad", "").strip()
    inside = BY_KIND.get(kind, _expression)(reference)
    if answer_type == "aime":
        inside = [text for text in inside if "frac" not in text and "times" not in text]
    return [*_appearances(reference, kind), *map(box, dict.fromkeys(inside))]


def _appearances(text: str, kind: str) -> list[str]:
    """Forms of every answer: what stands around it, spaces, signs."""
    spaced = text.replace(",", " , ") if kind in ("list", "bracket") else text
    return [
        box(text),
        rf"So the answer is \boxed {{ {text} }}.",
        rf"\fbox{{{text}}}",
        rf"First I get \boxed{{123456}}. No: \boxed{{{text}}}",
        rf"<think>Is it \boxed{{123456}}? \boxed{{</think>It is \boxed{{{text}}}",
        box(rf"${text}$"),
        box(rf"\displaystyle {spaced}\,"),
        box(f"{text}."),
        box(text.replace("-", "−").translate(WIDE)),
        box(
            text.replace("(", r"\left(").replace(")", r"\right)")
            if kind not in ("text", "choice")
            else rf"\mathrm{{{text}}}"
        ),
    ]


def _choice(text: str) -> list[str]:
    letter = CHOICE.match(text)[1]
    return [
        letter,
        f"({letter})",
        rf"\text{{{letter}}}",
        rf"\textbf{{({letter})}}",
        f"{letter}.",
        f"{letter})",
        rf"\text{{({letter})}}\ 27",
    ]


def _text(text: str) -> list[str]:
    word = TEXT.match(text)[1]
    return [
        word,
        rf"\text{{{word}}}",
        rf"\textbf{{{word}}}",
        word.upper(),
        word.lower(),
        f'"{word}"',
        rf"\mathrm{{{word}}}",
        rf"\text{{ {word} }}",
    ]


def _bracket(text: str) -> list[str]:
    inner = split(text[1:-1])
    spaced, begin, end = ", ".join(inner), text[0], text[-1]
    return [
        f"{begin}{spaced}{end}",
        rf"\left{begin}{spaced}\right{end}",
        rf"\bigl{begin} {spaced} \bigr{end}",
        f"{begin}{','.join(f'{{{part}}}' for part in inner)}{end}",
        text.replace("\\frac", "\\dfrac"),
        begin + ", ".join(f"{part}+0" if "infty" not in part else part for part in inner) + end,
        f"P = {text}",
    ]


def _list(text: str) -> list[str]:
    parts = split(text)
    last_first = list(reversed(parts))
    return [
        ", ".join(parts),
        ", ".join(last_first),
        "; ".join(parts),
        r" \text{ and } ".join(parts),
        " or ".join(last_first),
        r"\{" + ", ".join(parts) + r"\}" if len(set(parts)) == len(parts) else ",".join(parts),
        ",\\quad ".join(parts),
        f"${'$, $'.join(parts)}$",
        ", ".join(parts[:-1]) + r", \text{ and } " + parts[-1],
    ]


def _set(text: str) -> list[str]:
    parts = split(text.removeprefix("\\{").removesuffix("\\}"))
    parts = [
        piece
        for part in parts
        for piece in ([part.replace("\\pm", "+"), part.replace("\\pm", "-")] if "\\pm" in part else [part])
    ]
    orders = [parts, list(reversed(parts)), [*parts[1:], parts[0]]]
    return [
        rf"{a}{', '.join(order)}{b}"
        for order in orders
        for a, b in ((r"\{", r"\}"), (r"\left\{", r"\right\}"), (r"\lbrace ", r"\rbrace "))
    ]


def _union(text: str) -> list[str]:
    parts = [part.strip(" .") for part in text.split("\\cup")]
    return [
        r"\cup".join(parts),
        r" \cup ".join(reversed(parts)),
        "∪".join(parts),
        rf"x \in {text}",
        r" \bigcup ".join(parts).replace("bigcup", "cup"),
    ]


def _relation(text: str) -> list[str]:
    forms = [text.replace("=", " = "), text.replace("\\frac", "\\dfrac")]
    if text.count("=") == 1:
        left, right = text.split("=")
        forms += [f"{left} = {right} + 0", f"{left} = ({right})", rf"{left} = 1 \cdot ({right})"]
        if not (len(left) < 6 and any(letter in right for letter in left if letter.isalpha())):
            forms.append(f"{right} = {left}")
    if "\\geqslant" in text:
        left, right = text.split("\\geqslant")
        forms += [f"{left} \\ge {right}", f"{right} \\le {left}", f"{left}≥{right}", rf"[{right.strip()}, \infty)"]
    return forms


def _pair(text: str) -> list[str]:
    plus, minus = text.replace("\\pm", "+"), text.replace("\\pm", "-")
    return [
        f"{plus}, {minus}",
        f"{minus}, {plus}",
        rf"{plus} \text{{ and }} {minus}",
        text.replace("\\pm", "±"),
        rf"x = {text}",
        rf"\{{{plus}, {minus}\}}",
    ]


def _matrix(text: str) -> list[str]:
    rows = text.replace("\\\\", "\\")
    body = rows.split("}", 1)[1].rsplit("\\end", 1)[0]
    lines = [line for line in body.split("\\") if line]
    joined = " \\\\ ".join(lines)
    fractions = " \\\\ ".join(_as_fraction(line) for line in lines)
    return [
        rf"\begin{{{name}}} {content} \end{{{name}}}"
        for name in ("pmatrix", "bmatrix")
        for content in (joined, fractions, joined.replace("/", " / "))
    ]


def _as_fraction(entry: str) -> str:
    if "/" not in entry:
        return entry
    above, below = entry.split("/")
    sign = "-" if above.startswith("-") else ""
    return rf"{sign}\frac{{{above.lstrip('-')}}}{{{below}}}"


def _expression(text: str) -> list[str]:
    return [
        f"({text})",
        f"{text} + 0",
        rf"1 \cdot ({text})",
        text.replace("\\frac", "\\dfrac"),
        rf"\frac{{2({text})}}{{2}}",
        rf"-(-({text}))",
        text.replace("\\sqrt", "√") if "\\sqrt{" in text else f"{text} ",
        text.replace(" ", r"\,"),
        rf"\left({text}\right)",
        rf"0 + {text}" if not text.startswith("-") else f"0{text}",
    ]


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
    "other": lambda text: [text, f" {text} "],
}
