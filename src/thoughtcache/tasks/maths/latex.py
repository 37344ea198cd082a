r"""Takes what is only appearance from an answer in LaTeX, and says when two answers are the same text.

    tidy(r"$\dfrac12\,\text{cm}$.")          # r"\frac{1}{2} \text{cm}"
    literal(r"\left( 1,\ 2 \right)")         # "(1,2)"

Nothing here changes what an answer means: spaces between two digits stay, words stay words.
"""

from __future__ import annotations

import re

from thoughtcache.tasks.maths.unicode_text import as_latex

TEXT_COMMAND = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|text|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|operatorname\*?"
    r"|emph|bm|boldsymbol|pmb)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
FONT_SWITCH = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|rm|bf|it|limits|nolimits|mathstrut|phantom\{[^{}]*\})\b"
)
SIZE = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*(\.(?!\d))?")
FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
SPACE = re.compile(r"(?:\\(?:[,;:! ]|q?quad(?![A-Za-z])|hspace\*?\{[^{}]*\}|thinspace|enspace)|~|&nbsp;)\s*")
THOUSANDS_MARK = re.compile(
    r"(?<=\d)(?:\{,\}|,\\!|\\,|\\!|\\;|\\ |\{\\,\}|,\{\}|'|_(?=\d{3}(?!\d|\}))|~| )(?=\d{3}(?!\d))"
)
SHORT_FRACTION = re.compile(r"\\frac\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d+)|([A-Za-z](?![A-Za-z]))|\{([^{}]*)\})")
SHORT_ROOT = re.compile(r"\\sqrt\s*(\d+|[A-Za-z](?![A-Za-z]))")
DEGREE = re.compile(
    r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{\s*\\degree\s*\}|\\degree(?![A-Za-z]))|\\degrees?(?![A-Za-z])"
)
PRIME = re.compile(r"\^\s*\{?\s*((?:\\prime\s*)+)\}?")
COUNTED = re.compile(r"^([+-]?\d[\d.,]*)\s+([^\W\d_][^\d\\^_=]*)$")
"""`204 minutes` inside of a command for text."""

DERIVATIVE = re.compile(r"(?<![A-Za-z\\])d([A-Za-z])\s*/\s*d([A-Za-z])(?![A-Za-z])")
OUTER = re.compile(
    r"^\s*(?:\$\$?|\\\(|\\\[|\*\*|\\begin\{(?:equation|align)\*?\})|(?:\$\$?|\\\)|\\\]|\*\*|\\end\{(?:equation|align)\*?\})\s*$"
)
RENAMED = {
    r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])": r"\\le ",
    r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])": r"\\ge ",
    r"\\(?:neq|ne)(?![A-Za-z])": r"\\ne ",
    r"\\lt(?![A-Za-z])": "<",
    r"\\gt(?![A-Za-z])": ">",
    r"\\(?:lbrace)(?![A-Za-z])": r"\\{",
    r"\\(?:rbrace)(?![A-Za-z])": r"\\}",
    r"\\(?:lbrack)(?![A-Za-z])": "[",
    r"\\(?:rbrack)(?![A-Za-z])": "]",
    r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])": "|",
    r"\\(?:langle)(?![A-Za-z])": "(",
    r"\\(?:rangle)(?![A-Za-z])": ")",
    r"\\(?:times|cdot|ast|cdotp|bullet)(?![A-Za-z])": "*",
    r"\\(?:varnothing|empty)(?![A-Za-z])": r"\\emptyset ",
    r"\\(?:colon)(?![A-Za-z])": ":",
    r"\\(?:land)(?![A-Za-z])": " and ",
    r"\\(?:lor)(?![A-Za-z])": " or ",
    r"\\(?:approx|simeq|doteq)(?![A-Za-z])": r"\\approx ",
    r"\\equiv(?![A-Za-z])": "=",
    r"\\rightarrow(?![A-Za-z])|\\to(?![A-Za-z])": " to ",
}
ALTERNATIVES = re.compile("|".join(f"({pattern})" for pattern in RENAMED))
WRITTEN = [replacement.replace("\\\\", "\\") for replacement in RENAMED.values()]


def tidy(text: str) -> str:
    r"""The answer in one spelling: one kind of fraction, space and relation, no sizes, `\text` around words."""
    text = as_latex(text)
    text = _without_dollars(text)
    for _ in range(3):
        text = OUTER.sub("", text).strip()
    text = THOUSANDS_MARK.sub(",", text)
    text = FONT_SWITCH.sub("", SIZE.sub("", text))
    text = FRACTION.sub(r"\\frac", text)
    text = TEXT_COMMAND.sub(_words, text)
    text = DEGREE.sub(r"\\deg ", text)
    text = PRIME.sub(lambda primes: "'" * primes[1].count("prime"), text)
    text = ALTERNATIVES.sub(lambda found: WRITTEN[(found.lastindex or 1) - 1], text)
    text = SPACE.sub(" ", text)
    text = SHORT_FRACTION.sub(_fraction, text)
    text = DERIVATIVE.sub(r"\\frac{d \1}{d \2}", text)
    text = SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    return _without_ends(" ".join(text.replace("**", "^").split()))


def literal(text: str) -> str:
    """A tidy text without the spaces that separate nothing, and without braces around single signs."""
    text = tidy(text)
    text = re.sub(r"([_^])\s*\{\s*([A-Za-z0-9])\s*\}", r"\1\2", text)
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text)


def _without_dollars(text: str) -> str:
    """Dollars around formulas are nothing; before a number, escaped or alone, they are a currency."""
    text = text.replace(r"\$", r"\usd ")
    if text.count("$") % 2 and re.search(r"\$\s*[\d.]", text):
        return re.sub(r"\$(?=\s*[\d.])", r"\\usd ", text, count=1).replace("$", "")
    return text.replace("$", "")


def _words(command: re.Match[str]) -> str:
    r"""Words in `\text` stay marked as words; numbers, single letters and signs in it are mathematics."""
    content = command[1].strip()
    if counted := COUNTED.match(content):
        return rf"{counted[1]} \text{{{counted[2]}}} "
    if re.search(r"[^\W\d_]{2}", content) and not re.search(r"[\\^_=]", content):
        return rf" \text{{{content}}} "
    return f"{content} " if content[-1:].isalpha() else content


def _fraction(found: re.Match[str]) -> str:
    above = found[1] or found[2] or ""
    below = found[3] or found[4] or found[5] or ""
    if found[1] and found[3] and len(below) > 1:  # `\frac123` is a half times 3
        return rf"\frac{{{above}}}{{{below[0]}}}*{below[1:]}"
    return rf"\frac{{{above}}}{{{below}}}"


def _without_ends(text: str) -> str:
    """Without a full stop at the end and without braces around everything."""
    while True:
        shorter = text.strip().rstrip(".;,").strip().strip('"`')
        if shorter.startswith("{") and shorter.endswith("}") and _closes_last(shorter):
            shorter = shorter[1:-1]
        if shorter == text:
            return text
        text = shorter


def _closes_last(text: str) -> bool:
    depth = 0
    for index, character in enumerate(text):
        if character in "{}" and text[index - 1 : index] != "\\":
            depth += 1 if character == "{" else -1
        if depth == 0:
            return index == len(text) - 1
    return False
