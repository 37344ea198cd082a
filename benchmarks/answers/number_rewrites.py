r"""Right answers: numbers in other forms, as contents of a box."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from benchmarks.answers.kinds import BASED, DEGREES, FRACTION, MIXED, PERCENT

WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
)
BASES = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}


def integer(text: str) -> list[str]:
    """Forms of `72`, `1,072`."""
    value = int(text.replace(",", ""))
    forms = [
        f"{value}.0",
        f"x = {value}",
        rf"\${value}",
        rf"{value} \text{{ units}}",
        rf"{value}^\circ",
        rf"\text{{{value}}}",
        rf"\frac{{{2 * value}}}{{2}}",
        rf"{value} \times 1",
    ]
    if value >= 0:
        forms += [f"0{value}", f"{value} dollars", f"{value} cm"]
    if 0 <= value < len(WORDS):
        forms.append(WORDS[value])
    if value >= 1000:
        grouped = f"{value:,}"
        forms += [
            grouped,
            grouped.replace(",", "{,}"),
            grouped.replace(",", r"\,"),
            grouped.replace(",", ",\\!"),
            grouped.replace(",", "\u202f"),
        ]
    return forms


def fraction(text: str) -> list[str]:
    r"""Forms of `\frac{1}{2}`."""
    sign, above, below = FRACTION.match(text).groups()
    value = Fraction(int(sign + "1") * int(above), int(below)) if sign else Fraction(int(above), int(below))
    above, below = value.numerator, value.denominator
    forms = [
        f"{above}/{below}",
        rf"\dfrac{{{above}}}{{{below}}}",
        rf"\tfrac{{{above}}}{{{below}}}",
        rf"\frac{{{3 * above}}}{{{3 * below}}}",
        f"({above})/({below})",
        rf"x=\frac{{{above}}}{{{below}}}",
        rf"{above} \div {below}",
        rf"{above} \cdot \frac{{1}}{{{below}}}",
        f"{above}⁄{below}",
    ]
    forms.append(f"{float(value):.10f}".rstrip("0"))
    if 0 < above < 10 and below < 10:
        forms.append(rf"\frac{above}{below}")
    if above > below > 1:
        forms.append(rf"{above // below}\frac{{{above % below}}}{{{below}}}")
        forms.append(f"{above // below} {above % below}/{below}")
    return forms


def mixed(text: str) -> list[str]:
    r"""Forms of `1\frac{4}{5}`."""
    whole, above, below = map(int, MIXED.match(text).groups())
    return fraction(rf"\frac{{{whole * below + above}}}{{{below}}}")


def decimal(text: str) -> list[str]:
    """Forms of `5.4`."""
    value = Fraction(text)
    forms = [
        f"{text}0",
        str(value),
        rf"\frac{{{value.numerator}}}{{{value.denominator}}}",
        rf"{text} \text{{ cm}}",
        rf"x = {text}",
        rf"{text} \mathrm{{~kg}}",
        rf"{Decimal(text) / 10:f} \times 10^{{1}}",
        rf"{Decimal(text) / 10:f}e1",
        rf"\$ {text}",
    ]
    return [*forms, text.lstrip("0")] if text.startswith("0.") else forms


def scientific(text: str) -> list[str]:
    """Forms of `4.5e33`."""
    mantissa, power = text.split("e")
    return [
        rf"{mantissa} \times 10^{{{power}}}",
        rf"{mantissa} \cdot 10^{{{power}}}",
        f"{mantissa}E{power}",
        f"{mantissa}*10^{power}",
        f"{mantissa}×10^{{{power}}}",
        rf"{mantissa} \times 10^{{{power}}} \text{{ erg}}",
        rf"{mantissa} \times 10^{{{power}}} \mathrm{{~cm}}",
        rf"{float(mantissa) * 10:.12g}e{int(power) - 1}",
    ]


def based(text: str) -> list[str]:
    """Forms of `4210_5`."""
    digits, base = BASED.match(text).groups()
    return [
        f"{digits}_{base}",
        f"{digits}_{{{base}}}",
        rf"{digits}_{{\text{{{BASES[int(base)]}}}}}",
        f"{digits} base {base}",
        rf"{digits} \text{{ base }} {base}",
        f"({digits})_{{{base}}}",
        f"{digits} in base {BASES[int(base)]}",
    ]


def degrees(text: str) -> list[str]:
    r"""Forms of `18.8^{\circ}`."""
    value = DEGREES.match(text)[1]
    return [
        value,
        f"{value}°",
        f"{value} degrees",
        rf"{value}\degree",
        rf"{value}^\circ",
        rf"{value} \text{{ degrees}}",
        rf"{value}^{{\circ}}",
    ]


def percent(text: str) -> list[str]:
    """Forms of `62.5%`."""
    value = PERCENT.match(text)[1]
    exact = Fraction(value) / 100
    return [
        rf"{value}\%",
        f"{value}%",
        f"{value} percent",
        rf"{value} \text{{ percent}}",
        f"{exact}",
        rf"\frac{{{exact.numerator}}}{{{exact.denominator}}}",
    ]
