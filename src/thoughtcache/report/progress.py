"""Progress of a loop: a live bar on a terminal, plain lines elsewhere, nothing on other processes than the first.

    with progress_bar("evaluating", total=1000) as advance:
        rollout(..., progress=advance)

Trainers have a callback of their own: `trainer_progress.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINES = 10


@runtime_checkable
class Advance(Protocol):
    """The function of `progress_bar`: `advance(n)` says that `n` more are done; fields are shown beside the bar."""

    def __call__(self, n: int = 1, **fields: float) -> None:
        """`n` more are done."""


def is_main_process() -> bool:
    """Whether this is the first process of a `torchrun` or `accelerate` launch, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def new_progress(console: Console) -> Progress:
    """A bar with counts, times and a free text `fields`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[fields]}"),
        console=console,
    )


def format_fields(fields: Mapping[str, float]) -> str:
    """`loss 0.132  reward 0.5`: four digits each."""
    return "  ".join(f"{name} {value:.4g}" for name, value in fields.items())


@contextmanager
def progress_bar(description: str, total: int, *, console: Console | None = None) -> Iterator[Advance]:
    """Show the progress of a block.

    On a terminal a live bar; elsewhere about ten plain lines; on processes other than the first nothing.

    Args:
        description: what is being done.
        total: how many there are, 0 or more.
        console: where to write; standard output by default.

    Raises:
        ValueError: if the total is negative.
    """
    if total < 0:
        raise ValueError(f"total must be 0 or more, got {total}")
    console = console or Console()
    if not is_main_process():
        yield _ignore
    elif console.is_terminal:
        with new_progress(console) as progress:
            task = progress.add_task(description, total=total, fields="")

            def advance(n: int = 1, **fields: float) -> None:
                progress.update(task, advance=n)
                if fields:
                    progress.update(task, fields=format_fields(fields))

            yield advance
    else:
        yield _plain_advance(description, total, console)


def _ignore(n: int = 1, **fields: float) -> None:
    """Another process reports."""


def _plain_advance(description: str, total: int, console: Console) -> Advance:
    """Prints a line whenever another tenth of the total is done."""
    started = time.perf_counter()
    done = printed = 0

    def advance(n: int = 1, **fields: float) -> None:
        nonlocal done, printed
        done += n
        tenths = PLAIN_LINES if done >= total else done * PLAIN_LINES // total
        if tenths > printed:
            printed = tenths
            seconds = f"{time.perf_counter() - started:.0f} s"
            parts = [f"{description} {done}/{total}", seconds, format_fields(fields)]
            plain_line(console, "  ".join(part for part in parts if part))

    return advance


def plain_line(console: Console, text: str) -> None:
    """One line of text as it is: no markup, no colours, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
