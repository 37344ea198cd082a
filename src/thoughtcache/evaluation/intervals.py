"""Intervals: for a share of correct answers, and for the mean of numbers such as paired differences; and pass@k.

Pure functions. Not covered: paired comparisons of two policies on the same problems, seed spread (an interval here
speaks about the problems or texts that were drawn, never about other training seeds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a binomial share (Wilson 1927); sensible at 0 %, at 100 % and for small samples.

    Args:
        correct: right answers, 0 to `total`.
        total: answers, at least 1.
        confidence: coverage, strictly between 0 and 1.

    Returns:
        (low, high), shares in [0, 1] with `low <= correct / total <= high`.

    Raises:
        ValueError: if the counts or the confidence are out of range.
    """
    if total < 1:
        raise ValueError(f"total must be at least 1 answer, got {total}; an empty evaluation has no interval")
    if not 0 <= correct <= total:
        raise ValueError(f"correct must be between 0 and total={total}, got {correct}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be strictly between 0 and 1, got {confidence}; 0.95 is usual")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / total
    centre = share + z * z / (2 * total)
    radius = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At 0 and at `total` the bound is exact on paper; rounding must not push it past the share.
    low = 0.0 if correct == 0 else (centre - radius) / scale
    high = 1.0 if correct == total else (centre + radius) / scale
    return low, high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean, for values that are about normal or not few.

    Args:
        values: at least two.
        confidence: coverage, strictly between 0 and 1.

    Returns:
        (low, high).

    Raises:
        ValueError: for fewer values, or a confidence that is out of range.
    """
    from scipy import stats  # as long to import as the rest of the package

    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(values)}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be strictly between 0 and 1, got {confidence}; 0.95 is usual")
    mean = math.fsum(values) / len(values)
    error = float(stats.sem(values))
    if error == 0.0:
        return mean, mean
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def ratio_interval(
    sums: Sequence[float], counts: Sequence[int], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The mean over the tokens of several texts, with an interval that takes whole texts for what was drawn.

    The mean is `sum(sums) / sum(counts)`. Text `i` adds `n (sums_i - mean counts_i) / sum(counts)` to its error, with n
    texts, and the interval is Student's of the mean of these (linearised ratio estimator).

    Args:
        sums: sum over the tokens of each text.
        counts: tokens of each text, at least one together.
        confidence: coverage, strictly between 0 and 1.

    Returns:
        (mean, low, high); the ends are the mean where fewer than two texts have tokens.

    Raises:
        ValueError: if there are no tokens.
    """
    total = sum(counts)
    if total < 1:
        raise ValueError("a mean over tokens needs at least one, got none")
    mean = math.fsum(sums) / total
    if sum(count > 0 for count in counts) < 2:
        return mean, mean, mean
    errors = [len(counts) * (one - mean * count) / total for one, count in zip(sums, counts, strict=True)]
    low, high = mean_interval(errors, confidence)
    return mean, mean + low, mean + high


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of `k` samples is right (Chen et al. 2021, arXiv 2107.03374).

    `1 - C(n - c, k) / C(n, k)` for one problem; average it over problems.

    Args:
        num_samples: n, samples drawn for the problem, at least 1.
        num_correct: c, right ones among them, 0 to n.
        k: samples that a user would draw, 1 to n.

    Raises:
        ValueError: if the counts are out of range.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct must be between 0 and num_samples={num_samples}, got {num_correct}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be between 1 and num_samples={num_samples}, got {k}; draw more samples per problem")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
