r"""Wrong answers: what is near a number and is not it, as contents of a box."""

from __future__ import annotations

import re
from fractions import Fraction

from benchmarks.answers.kinds import BASED, DEGREES, FRACTION, MIXED, PERCENT


def integer(text: str) -> list[str]:
    """Near `72`, `1,072`."""
    value = int(text.replace(",", ""))
    forms = [
        str(value + 1),
        str(value - 1),
        f"{value}, {value + 1}",
        f"{value}.5",
        rf"\frac{{{value}}}{{{3 if value else 1}}} + 1",
        f"({value}, {value})",
        f"{value + 1} = {value}",
        f"{value}_{{8}}",
        f"{value} and {value + 2}",
    ]
    if value:
        forms += [str(-value), f"{value}0", rf"\{{0, {value}\}}", f"{value}00"]
    if abs(value) > 1:
        forms += [f"{value}^2", rf"\frac{{1}}{{{value}}}", rf"\sqrt{{{abs(value)}}}"]
    if value > 2:
        forms.append(f"{value}!")
    if str(abs(value))[::-1] != str(abs(value)):
        forms.append(str(abs(value))[::-1])
    return forms


def fraction(text: str) -> list[str]:
    r"""Near `\frac{1}{2}`."""
    sign, above, below = FRACTION.match(text).groups()
    value = Fraction(int(above), int(below)) * (-1 if sign else 1)
    return _near_fraction(value)


def _near_fraction(value: Fraction) -> list[str]:
    above, below = value.numerator, value.denominator
    forms = [
        rf"\frac{{{above + 1}}}{{{below}}}",
        rf"\frac{{{above - 1}}}{{{below}}}",
        rf"\frac{{{above}}}{{{below + 1}}}",
        rf"-\frac{{{above}}}{{{below}}}" if above > 0 else rf"\frac{{{-above}}}{{{below}}}",
        rf"\frac{{{above}}}{{{10 * below}}}",
        rf"\frac{{{above}}}{{{below}}}, 1",
        f"({above}, {below})",
        rf"1+\frac{{{above}}}{{{below}}}",
        f"{above}",
        f"{below}",
    ]
    if abs(value) < 1:
        forms.append(rf"\frac{{{above}}}{{{below}}}\%")
    if abs(above) != below:
        forms.append(rf"\frac{{{below}}}{{{above}}}")
    if (10**9 * value).denominator != 1:
        forms.append(f"{float(value):.4g}")
    return forms


def mixed(text: str) -> list[str]:
    r"""Near `1\frac{4}{5}`."""
    whole, above, below = map(int, MIXED.match(text).groups())
    return [
        *_near_fraction(whole + Fraction(above, below)),
        rf"{whole} \cdot \frac{{{above}}}{{{below}}}",
        rf"{whole + 1}\frac{{{above}}}{{{below}}}",
    ]


def decimal(text: str) -> list[str]:
    """Near `5.4`."""
    places = len(text.partition(".")[2])
    step = Fraction(1, 10**places)
    value = Fraction(text)
    near = [f"{float(value + step):.{places}f}", f"{float(value - step):.{places}f}", f"{float(value + 1):.{places}f}"]
    return [
        *near,
        f"-{text.lstrip('+')}" if value > 0 else text.lstrip("-"),
        f"{float(value * 10):g}",
        f"{float(value / 10):.12g}",
        f"{text}, 1",
        f"({text}, {text})",
        f"{text}e3",
        rf"1 + {text}",
    ]


def scientific(text: str) -> list[str]:
    """Near `4.5e33`."""
    mantissa, power = text.split("e")
    places = len(mantissa.partition(".")[2])
    up = f"{float(mantissa) + 10**-places:.{places}f}"
    return [
        f"{mantissa}e{int(power) + 1}",
        f"{mantissa}e{int(power) - 1}",
        f"{up}e{power}",
        f"-{text}",
        mantissa,
        f"{mantissa}e{-int(power)}",
        rf"{mantissa} \times 10^{{{int(power) + 2}}}",
        "0.0",
        f"{text}, {text}",
        f"{up} \\cdot 10^{{{power}}}",
    ]


def based(text: str) -> list[str]:
    """Near `4210_5`."""
    digits, base = BASED.match(text).groups()
    return [
        digits,
        f"{digits}_{{{int(base) + 1}}}",
        f"{digits}_{{10}}",
        f"1{digits}_{{{base}}}",
        f"{digits}0_{{{base}}}",
        f"{digits[::-1]}_{{{base}}}" if digits != digits[::-1] else f"1_{{{base}}}",
        f"-{digits}_{{{base}}}",
        str(int(digits, int(base))),
        f"{digits}_{{16}}",
    ]


def degrees(text: str) -> list[str]:
    r"""Near `18.8^{\circ}`."""
    value = DEGREES.match(text)[1]
    return [
        rf"{form}^\circ"
        for form in (decimal(value) if "." in value else integer(value))
        if not re.search(r"[,=_^!]", form)
    ] + ["0"]


def percent(text: str) -> list[str]:
    """Near `62.5%`."""
    value = PERCENT.match(text)[1]
    forms = decimal(value) if "." in value else integer(value)
    return [rf"{form}\%" for form in forms if re.fullmatch(r"-?[\d.]+", form)] + [
        value,
        f"0.{value}%",
        f"{value}%, 1%",
        f"-{value}%",
    ]
