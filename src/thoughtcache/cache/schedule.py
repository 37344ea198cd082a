"""When the cache evicts: a pure function of integers (DESIGN section 2, "Segments").

Between two evictions the thought state is constant; the inputs processed in between form a *segment*. Input `t` is
thought token `t`; the prompt belongs to segment 0. Segment 0 holds the first `window` thought inputs, every later one
`num_evicted` of them. Nothing here looks at tensors. Proof: tests/properties/test_schedule.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Thought inputs `start` (inclusive) to `stop` (exclusive) that are processed under one cache and one state."""

    start: int
    stop: int


def evict_count(window: int, evict_fraction: float) -> int:
    """Number of thought tokens that leave at once: `max(1, round(evict_fraction * window))`.

    Args:
        window: resident thought tokens, at least 1.
        evict_fraction: share of the window that leaves, in (0, 1].

    Raises:
        ValueError: if either is out of range.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 thought token, got {window}; use None for the full cache")
    if not 0.0 < evict_fraction <= 1.0:
        raise ValueError(f"evict_fraction must be in (0, 1], got {evict_fraction}; the paper uses 0.25")
    return max(1, round(evict_fraction * window))


def num_evictions(num_inputs: int, window: int | None, num_evicted: int | None) -> int:
    """Evictions that happen while `num_inputs` thought tokens are processed one after the other."""
    if window is None or num_evicted is None or num_inputs <= window:
        return 0
    return -(-(num_inputs - window) // num_evicted)


def eviction_points(num_inputs: int, window: int | None, num_evicted: int | None) -> tuple[int, ...]:
    """Thought inputs before which an eviction happens, ascending."""
    if window is None or num_evicted is None:
        return ()
    count = num_evictions(num_inputs, window, num_evicted)
    return tuple(window + index * num_evicted for index in range(count))


def segments(num_inputs: int, window: int | None, num_evicted: int | None) -> tuple[Segment, ...]:
    """Segments that partition the thought inputs `[0, num_inputs)`; segment 0 always exists (it holds the prompt)."""
    bounds = (0, *eviction_points(num_inputs, window, num_evicted), num_inputs)
    return tuple(Segment(start=start, stop=stop) for start, stop in pairwise(bounds))


def resident_thoughts(input_index: int, window: int | None, num_evicted: int | None) -> int:
    """Thoughts in the cache right after thought input `input_index` was written, itself included."""
    evicted = num_evictions(input_index + 1, window, num_evicted) * (num_evicted or 0)
    return input_index + 1 - evicted
