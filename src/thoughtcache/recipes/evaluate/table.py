"""Tables of an evaluation, on the screen and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from thoughtcache.evaluation.paired import PairedDifference
from thoughtcache.evaluation.scores import Share
from thoughtcache.report.tables import print_wide


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


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table whose first column is words."""
    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    print_wide(table, console)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown, ending in a newline."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)
