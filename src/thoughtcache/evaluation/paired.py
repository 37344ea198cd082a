"""Two runs on the same questions: the difference question by question, its interval, and what could have been seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from thoughtcache.evaluation.bootstrap import bootstrap_interval
from thoughtcache.evaluation.intervals import wilson_interval

POWER = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """A comparison of two runs, B against A.

    Attributes:
        num_questions: questions that both answered.
        first: mean share of right answers of A, in [0, 1].
        second: that of B.
        low: lower end of the interval of `difference`.
        high: upper end of it.
        better: questions of which B had the larger share right.
        worse: questions of which A had.
        detectable: the smallest true difference that such a comparison finds with a chance of 80 %; None if no two
            questions differ by different amounts, so that the spread is not known.
    """

    num_questions: int
    first: float
    second: float
    low: float
    high: float
    better: int
    worse: int
    detectable: float | None

    @property
    def difference(self) -> float:
        """B less A, in [-1, 1]."""
        return self.second - self.first


def compare(first: Mapping[str, float], second: Mapping[str, float], confidence: float = 0.95) -> PairedDifference:
    """Compare shares of right answers on the questions that both runs have.

    The interval is a bootstrap over questions (`bootstrap.py`). Where all differences are the same, it is what the
    share of questions that differ may be by Wilson's interval. The detectable difference is
    `(z(1 - alpha / 2) + z(power)) s / sqrt(n)` with s the spread of the differences of n questions.

    Args:
        first: question -> share of right answers of A.
        second: the same of B.
        confidence: coverage, strictly between 0 and 1.

    Raises:
        ValueError: if the runs share no question, or the confidence is out of range.
    """
    shared = [question for question in first if question in second]
    if not shared:
        raise ValueError("the two runs have no question in common; compare runs of the same suites")
    differences = [second[question] - first[question] for question in shared]
    count = len(shared)
    mean = math.fsum(differences) / count
    if min(differences) == max(differences):
        width = wilson_interval(0, count, confidence)[1]
        low, high, detectable = max(-1.0, mean - width), min(1.0, mean + width), None
    else:
        low, high = bootstrap_interval(differences, confidence, seed=0)
        spread = statistics.stdev(differences)
        quantiles = NormalDist().inv_cdf(0.5 + confidence / 2) + NormalDist().inv_cdf(POWER)
        detectable = quantiles * spread / math.sqrt(count)
    return PairedDifference(
        num_questions=count,
        first=math.fsum(first[question] for question in shared) / count,
        second=math.fsum(second[question] for question in shared) / count,
        low=low,
        high=high,
        better=sum(difference > 0 for difference in differences),
        worse=sum(difference < 0 for difference in differences),
        detectable=detectable,
    )
