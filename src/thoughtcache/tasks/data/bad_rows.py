"""Handles rows that cannot be used: all of them are named and the run is refused, or they are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thoughtcache.checks import one_of

BAD_ROWS = ("refuse", "drop")
NUM_NAMED = 3
MAX_REASON_CHARACTERS = 240

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        place: which row it is: `line 5, row 3 of 'train.csv'`, or `line 5, data/train/3:`.
        reason: why, as the rest of a sentence that begins with `place`.
    """

    place: str
    reason: str


def settle_bad_rows(bad: Sequence[BadRow], num_rows: int, policy: str, report: Report) -> None:
    """Refuse bad rows, or report in one sentence that they are left out. Without bad rows nothing happens.

    Args:
        bad: the rows that cannot be used.
        num_rows: rows that were looked at, good and bad.
        policy: one of `BAD_ROWS`.
        report: gets the sentence if the policy is "drop".

    Raises:
        ValueError: if the policy is unknown, if there is a bad row under "refuse", or if all rows are bad.
    """
    one_of("bad_rows", policy, BAD_ROWS)
    if not bad:
        return
    named = "; ".join(f"{row.place} {_shortened(row.reason)}" for row in bad[:NUM_NAMED])
    more = f"; and {len(bad) - NUM_NAMED} more" if len(bad) > NUM_NAMED else ""
    if len(bad) == num_rows:
        raise ValueError(
            f"none of the {num_rows} rows can be used: {named}{more}; repair them, or name other columns with "
            "--prompt-column and --answer-column"
        )
    if policy == "refuse":
        raise ValueError(
            f"{len(bad)} of {num_rows} rows cannot be used: {named}{more}; "
            "repair or remove them, or leave them out with --bad-rows drop"
        )
    report(f"left out {len(bad)} of {num_rows} rows: {named}{more}")


def _shortened(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= MAX_REASON_CHARACTERS else f"{line[: MAX_REASON_CHARACTERS - 3]}..."
