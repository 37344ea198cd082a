"""Tables on a terminal, in a log and in Markdown. A comparison leaves out columns without any value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from thoughtcache.evaluation.accuracy import Accuracy

MISSING = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """One configuration of a comparison. None means: not measured.

    Attributes:
        name: what it is called.
        accuracy: right answers, with their interval.
        window: resident thoughts, "prompt", or None for the full cache.
        peak_memory_mib: peak over the baseline.
        kv_cache_kib: keys and values of the fullest moment.
        flops_per_token: mean operations per decoded token.
        seconds: wall-clock seconds by phase.
        parameters: trainable parameters.
    """

    name: str
    accuracy: Accuracy | None = None
    window: int | str | None = None
    peak_memory_mib: float | None = None
    kv_cache_kib: float | None = None
    flops_per_token: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None


def print_table(rows: Sequence[ResultRow], *, title: str | None = None, console: Console | None = None) -> None:
    """Print the table, whole on consoles of any width.

    Raises:
        ValueError: if there are no rows.
    """
    print_cells(title, *_cells(rows), console or Console())


def print_cells(title: str | None, header: Sequence[str], body: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table of texts; the first column is on the left, the others are on the right."""
    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in body:
        table.add_row(*row)
    print_wide(table, console)


def print_wide(table: Table, console: Console) -> None:
    """Print a table whole: a narrow terminal folds its cells, a log gets the width that it needs. Nothing is cut.

    rich calls a file a terminal under FORCE_COLOR; it is a log.
    """
    for column in table.columns:
        column.overflow = "fold"
    width = console.width
    if not (console.is_terminal and console.file.isatty()):
        console.width = max(width, console.measure(table, options=console.options.update(max_width=10_000)).maximum)
    try:
        console.print(table)
    finally:
        console.width = width


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """The table in Markdown, ending in a newline; the first column is on the left, numbers are on the right.

    Raises:
        ValueError: if there are no rows.
    """
    return markdown(*_cells(rows))


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, ending in a newline; the first column is on the left, the others are on the right.

    A cell with several lines becomes one line, with spaces between them.
    """
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *body]
    return "".join("| " + " | ".join(map(_markdown_cell, line)) + " |\n" for line in lines)


def _markdown_cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", r"\|")


def format_accuracy(accuracy: Accuracy) -> str:
    """Percent and interval: `92.7 % (91.0-94.1)`."""
    return f"{accuracy.percent:.1f} % ({100 * accuracy.low:.1f}-{100 * accuracy.high:.1f})"


def format_flops(flops: float) -> str:
    """A number of operations with three digits and a decimal prefix: `311 k`, `6.18 G`."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if flops >= limit:
            scaled = flops / limit
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {prefix}"
    return f"{flops:.0f}"


def _cells(rows: Sequence[ResultRow]) -> tuple[list[str], list[list[str]]]:
    """Header and body as text, without the columns that are empty in every row."""
    if not rows:
        raise ValueError("a table needs at least one row")
    phases = list(dict.fromkeys(phase for row in rows for phase in row.seconds))
    columns: list[tuple[str, list[str]]] = [
        ("name", [row.name for row in rows]),
        ("accuracy (95 %)", [MISSING if row.accuracy is None else format_accuracy(row.accuracy) for row in rows]),
        ("window", ["full" if row.window is None else str(row.window) for row in rows]),
        ("peak MiB", [_number(row.peak_memory_mib, 1) for row in rows]),
        ("KV KiB", [_number(row.kv_cache_kib, 1) for row in rows]),
        ("FLOP/token", [MISSING if r.flops_per_token is None else format_flops(r.flops_per_token) for r in rows]),
        *[(f"{phase} s", [_number(row.seconds.get(phase), 1) for row in rows]) for phase in phases],
        ("parameters", [_number(row.parameters, 0) for row in rows]),
    ]
    kept = [(name, cells) for name, cells in columns if any(cell != MISSING for cell in cells)]
    return [name for name, _ in kept], [list(cells) for cells in zip(*[cells for _, cells in kept], strict=True)]


def _number(value: float | int | None, digits: int) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"
