"""Wilson intervals and pass@k against values worked out by hand."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thoughtcache.evaluation.intervals import pass_at_k, wilson_interval


def test_wilson_at_one_half():
    # z = 1.959964, z^2 = 3.841459; 5 of 10: centre 0.5 (symmetry),
    # radius = z sqrt(0.025 + z^2 / 400) / (1 + z^2 / 10) = 1.959964 x 0.186018 / 1.384146 = 0.263405.
    assert wilson_interval(5, 10) == pytest.approx((0.236595, 0.763405), abs=1e-5)


def test_wilson_where_nothing_or_everything_is_right():
    # 0 of 10: low 0, high = (z^2 / 10) / (1 + z^2 / 10) = 0.3841459 / 1.3841459 = 0.277533.
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-5))
    assert wilson_interval(10, 10) == (pytest.approx(0.722467, abs=1e-5), 1.0)


def test_wilson_of_the_prototype():
    # 927 of 1000, z^2 / n = 0.003841459: centre (0.927 + 0.001920729) / 1.003841459 = 0.925366,
    # radius = 1.959964 sqrt(0.927 x 0.073 / 1000 + 0.003841459 / 4000) / 1.003841459 = 0.016175.
    assert wilson_interval(927, 1000) == pytest.approx((0.909191, 0.941541), abs=1e-5)


def test_wilson_with_another_confidence():
    # 90 %: z = 1.644854, z^2 = 2.705543; 0 of 10: high = 0.2705543 / 1.2705543 = 0.212942.
    assert wilson_interval(0, 10, confidence=0.9)[1] == pytest.approx(0.212942, abs=1e-5)


@given(st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_contains_the_share_and_mirrors(counts):
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert 0.0 <= low <= correct / total <= high <= 1.0
    assert wilson_interval(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "total", "confidence", "name"),
    [
        (0, 0, 0.95, "total"),
        (-1, 3, 0.95, "correct"),
        (4, 3, 0.95, "correct"),
        (1, 3, 0.0, "confidence"),
        (1, 3, 1.0, "confidence"),
    ],
)
def test_wilson_refuses(correct, total, confidence, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        wilson_interval(correct, total, confidence)


def test_pass_at_k_by_hand():
    # 4 samples, 1 right, 2 drawn: 3 of the 6 pairs hold the right one.
    assert pass_at_k(4, 1, 2) == 0.5
    # 10 samples, 3 right, 5 drawn: 1 - C(7, 5) / C(10, 5) = 1 - 21 / 252.
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(8, 0, 8) == 0.0
    # Fewer wrong ones than are drawn: certain.
    assert pass_at_k(8, 2, 7) == 1.0


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_subsets(numbers):
    num_samples, num_correct, k = numbers
    subsets = list(combinations(range(num_samples), k))
    hits = sum(any(index < num_correct for index in subset) for subset in subsets)
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(hits / len(subsets))


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k", "name"),
    [(0, 0, 1, "num_samples"), (3, 4, 1, "num_correct"), (3, -1, 1, "num_correct"), (3, 1, 0, "k"), (3, 1, 4, "k")],
)
def test_pass_at_k_refuses(num_samples, num_correct, k, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        pass_at_k(num_samples, num_correct, k)
