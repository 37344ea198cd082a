"""The schedule of evictions against a simulation that appends one token at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thoughtcache.cache.schedule import evict_count, eviction_points, num_evictions, resident_thoughts, segments

windows = st.integers(min_value=1, max_value=40)
lengths = st.integers(min_value=0, max_value=130)
fractions = st.floats(min_value=0.01, max_value=1.0)


def simulate(num_inputs: int, window: int, num_evicted: int) -> tuple[list[int], list[list[int]], list[int]]:
    """(inputs before which room was made, the thoughts that left each time, residents after each input)."""
    cache: list[int] = []
    points, blocks, residents = [], [], []
    for token in range(num_inputs):
        if len(cache) == window:
            points.append(token)
            blocks.append(cache[:num_evicted])
            cache = cache[num_evicted:]
        cache.append(token)
        residents.append(len(cache))
    return points, blocks, residents


@given(lengths, windows, fractions)
def test_schedule_is_the_token_by_token_simulation(num_inputs, window, fraction):
    num_evicted = evict_count(window, fraction)
    points, _, residents = simulate(num_inputs, window, num_evicted)
    assert eviction_points(num_inputs, window, num_evicted) == tuple(points)
    assert num_evictions(num_inputs, window, num_evicted) == len(points)
    assert [resident_thoughts(token, window, num_evicted) for token in range(num_inputs)] == residents


@given(lengths, windows, fractions)
def test_residents_never_exceed_the_window(num_inputs, window, fraction):
    num_evicted = evict_count(window, fraction)
    for token in range(num_inputs):
        assert 1 <= resident_thoughts(token, window, num_evicted) <= window


@given(lengths, windows, fractions)
def test_segments_partition_the_thoughts(num_inputs, window, fraction):
    num_evicted = evict_count(window, fraction)
    parts = segments(num_inputs, window, num_evicted)
    assert [token for part in parts for token in range(part.start, part.stop)] == list(range(num_inputs))
    assert parts[0].start == 0
    assert parts[0].stop == min(window, num_inputs)
    assert all(part.stop - part.start == num_evicted for part in parts[1:-1])
    assert all(1 <= part.stop - part.start <= num_evicted for part in parts[1:])
    assert tuple(part.start for part in parts[1:]) == eviction_points(num_inputs, window, num_evicted)


@given(lengths, windows, fractions)
def test_evicted_blocks_partition_a_prefix_of_the_thoughts(num_inputs, window, fraction):
    num_evicted = evict_count(window, fraction)
    _, blocks, residents = simulate(num_inputs, window, num_evicted)
    gone = [token for block in blocks for token in block]
    assert gone == list(range(num_evictions(num_inputs, window, num_evicted) * num_evicted))
    assert len(gone) + (residents[-1] if residents else 0) == num_inputs


@given(lengths, lengths, windows, fractions)
def test_the_schedule_of_a_prefix_is_a_prefix_of_the_schedule(first, second, window, fraction):
    # A row that ends early has the evictions of its longer neighbours, up to its own end.
    short, long = sorted((first, second))
    num_evicted = evict_count(window, fraction)
    points = eviction_points(long, window, num_evicted)
    assert eviction_points(short, window, num_evicted) == tuple(point for point in points if point < short)


@given(lengths)
def test_full_cache_is_one_segment(num_inputs):
    assert eviction_points(num_inputs, None, None) == ()
    assert num_evictions(num_inputs, None, None) == 0
    (only,) = segments(num_inputs, None, None)
    assert (only.start, only.stop) == (0, num_inputs)
    assert resident_thoughts(num_inputs, None, None) == num_inputs + 1


@given(windows, fractions)
def test_evict_count_is_a_valid_share(window, fraction):
    assert 1 <= evict_count(window, fraction) <= window


@pytest.mark.parametrize(
    ("window", "fraction", "count"),
    [(1, 0.25, 1), (2, 0.25, 1), (6, 0.25, 2), (16, 0.25, 4), (20, 0.25, 5), (1024, 0.25, 256), (7, 1.0, 7)],
)
def test_evict_count_by_hand(window, fraction, count):
    assert evict_count(window, fraction) == count


@pytest.mark.parametrize(
    ("window", "fraction", "message"),
    [
        (0, 0.25, "window must be at least 1"),
        (-3, 0.25, "window must be at least 1"),
        (8, 1.5, r"evict_fraction must be in \(0, 1\], got 1.5"),
        (8, 0.0, "evict_fraction"),
        (8, -0.1, "evict_fraction"),
        (8, float("nan"), "evict_fraction"),
    ],
)
def test_evict_count_refuses_values_out_of_range(window, fraction, message):
    with pytest.raises(ValueError, match=message):
        evict_count(window, fraction)


@settings(max_examples=20)
@given(st.integers(min_value=1, max_value=12), st.integers(min_value=0, max_value=3))
def test_the_window_boundary(window, extra):
    # W thoughts fit; the first eviction happens for thought input W, not one earlier or later.
    num_evicted = evict_count(window, 0.25)
    assert eviction_points(window, window, num_evicted) == ()
    assert eviction_points(window + 1 + extra, window, num_evicted)[0] == window
