"""Tables of an evaluation, on the screen and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from thoughtcache.evaluation.paired import PairedDifference
from thoughtcache.evaluation.scores import Share


def percent(share: Share) -> str:
    """Percent and interval: `92.7 % (91.0-94.1)`."""
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f}-{100 * share.high:.1f})"


def points(found: PairedDifference) -> str:
    """A difference in percentage points, with its interval: `+3.1 (-0.4 to +6.2)`."""
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def without_empty(header: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that are empty in every row; "-" for other empty cells."""
    kept = [index for index in range(len(header)) if any(row[index] for row in body)]
    return [header[index] for index in kept], [[row[index] or "-" for index in kept] for row in body]
