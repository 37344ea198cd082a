"""References of all kinds against rewritten and wrong forms of themselves, made by rule.

A small made-up sample; `tests/real_model/test_real_data.py` takes references of the public suites.
"""

from __future__ import annotations

import pytest
from benchmarks.answers.kinds import kind_of
from benchmarks.answers.neighbours import neighbours
from benchmarks.answers.rewrites import BY_KIND, rewrites

from thoughtcache.tasks.maths.answers import check_math_answer

REFERENCES = [
    "7", "-12", "204", "31415", "32,348", r"\frac{3}{7}", r"-\frac{7}{4}", r"\frac{5}{8}", r"2\frac{3}{4}", "5.4",
    "0.0312", "6.02e23", "-1.5e-7", "2143_5", r"101_{2}", "{(C)}", "{west}", r"18.5^{\circ}", "12.5%", "(3,-4)",
    r"[\frac{1}{3},8)", r"(2,\infty)", r"(1,2,3)", "4,9", "-1,0,6", "(1,2),(3,5)", "f(x)=x,f(x)=3-x",
    r"\{2,3,11\}", r"\{1\pm\sqrt{7},-2\}", r"(-\infty,1)\cup[4,9)", "y=3x-7", "k=12", r"n \geqslant 5", r"x\in[-3,8]",
    r"5\pm3\sqrt{2}", r"\begin{pmatrix}1/2\\-3\end{pmatrix}", r"\begin{pmatrix}2&0\\5&-1\end{pmatrix}", r"4\sqrt{5}",
    r"\frac{2\pi}{9}", "3x^2-2x+5", r"\binom{2n}{n}", "2^{2024}", r"\frac{90!}{2^{40}}", "3-7i", r"e^{-2t}\cos(3t)",
    r"\ln 2+i\pi/3", r"\lfloor n/3\rfloor+1", r"\sqrt{4\pi G\rho_{0}r_{0}^{2}}", r"\frac{M v^{2}}{2}",
]  # fmt: skip


def test_the_sample_has_every_kind() -> None:
    assert {kind_of(reference) for reference in REFERENCES} == set(BY_KIND) - {"other"} | {"expression"}


@pytest.mark.parametrize("reference", REFERENCES)
def test_rewritten_forms_are_right_and_neighbours_wrong(reference: str) -> None:
    right, wrong = rewrites(reference), neighbours(reference)
    assert min(len(right) - 1, len(wrong)) >= 8
    refused = [(form, verdict.reason) for form in right if not (verdict := check_math_answer(form, reference)).correct]
    accepted = [(form, verdict.reason) for form in wrong if (verdict := check_math_answer(form, reference)).correct]
    assert (refused, accepted) == ([], [])
