"""Intervals of means over questions, where answers to one question are not independent: whole questions are drawn.

A question with n samples is one cluster (Miller 2024, arXiv 2411.00640): its share of right answers is one number, and
the mean over questions is resampled by questions. Percentiles of a bootstrap are too narrow for few questions by
`sqrt((n - 1) / n)` and by normal instead of Student quantiles; the percentiles are widened by both (Hesterberg 2015,
"What Teachers Should Know About the Bootstrap", expanded percentiles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from thoughtcache.evaluation.intervals import wilson_interval

NUM_RESAMPLES = 10_000
_MOST_AT_ONCE = 2**22
"""Numbers drawn at once."""


def question_interval(values: Sequence[float], confidence: float = 0.95, *, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of one share per question.

    Where all questions have the same share nothing can be resampled; the interval is then Wilson's for as many answers
    as there are questions.

    Args:
        values: a share in [0, 1] of each question, at least one question.
        confidence: coverage, strictly between 0 and 1.
        seed: seeds the resampling, so that a table is the same each time.

    Returns:
        (low, high), shares with `low <= mean <= high`.

    Raises:
        ValueError: if there is no value, a value is no share, or the confidence is out of range.
    """
    if not values:
        raise ValueError("an interval needs at least one question, got none")
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"values must be shares from 0 to 1, got {min(values)} to {max(values)}")
    mean = math.fsum(values) / len(values)
    if min(values) == max(values):
        low, high = wilson_interval(round(mean * len(values)), len(values), confidence)
        return min(low, mean), max(high, mean)
    low, high = bootstrap_interval(values, confidence, seed=seed)
    return max(0.0, min(low, mean)), min(1.0, max(high, mean))


def bootstrap_interval(values: Sequence[float], confidence: float, *, seed: int) -> tuple[float, float]:
    """Widened percentiles of the means of resampled questions; at least two values.

    Raises:
        ValueError: for fewer values, or a confidence that is out of range.
    """
    if len(values) < 2:
        raise ValueError(f"a bootstrap needs at least 2 questions, got {len(values)}")
    tail = widened_tail(len(values), confidence)
    means = resampled_means(values, seed)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def widened_tail(num_questions: int, confidence: float) -> float:
    """The probability outside of each end, smaller than `(1 - confidence) / 2` for few questions.

    Raises:
        ValueError: if the confidence is out of range.
    """
    from scipy import stats  # as long to import as the rest of the package

    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be strictly between 0 and 1, got {confidence}; 0.95 is usual")
    quantile = float(stats.t.ppf(0.5 + confidence / 2, num_questions - 1))
    return NormalDist().cdf(-quantile * math.sqrt(num_questions / (num_questions - 1)))


def resampled_means(values: Sequence[float], seed: int) -> np.typing.NDArray[np.float64]:
    """[NUM_RESAMPLES] means of as many questions as there are, drawn with replacement."""
    array, rng = np.asarray(values, np.float64), np.random.default_rng(seed)
    rows = max(1, _MOST_AT_ONCE // len(array))
    parts = [
        array[rng.integers(len(array), size=(min(rows, NUM_RESAMPLES - start), len(array)))].mean(axis=1)
        for start in range(0, NUM_RESAMPLES, rows)
    ]
    return np.concatenate(parts)
