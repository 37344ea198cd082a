"""Progress of a phase: one live line on a terminal, plain lines elsewhere, nothing in other processes than the first.

    with progress_bar("evaluating", total=1000) as advance:
        rollout(..., progress=advance)

`PhaseLine` is the only place that draws progress; trainers have a callback that moves one (`trainer_progress.py`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.segment import ControlType
from rich.table import Column
from rich.text import Text

from thoughtcache.measuring.peak_memory import mib_in_use
from thoughtcache.sampler.events import Event, Finished

FIRST_WAIT, LONGEST_WAIT, WAITS = 5.0, 300.0, 20
"""Seconds between two plain lines at the beginning, and at most; in between a twentieth of the time so far."""
REFRESHES_PER_SECOND = 2.0
BAR_WIDTH = 12
ROOM_FOR_BAR = 110
"""Columns of a terminal below which figures need the place of the bar."""
ERASE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


@runtime_checkable
class Advance(Protocol):
    """The function of `progress_bar`: `advance(n)` says that `n` more are done, with so many tokens, and figures."""

    def __call__(self, n: int = 1, *, tokens: int = 0, **fields: float) -> None:
        """`n` more are done."""


def is_main_process() -> bool:
    """Whether this is the first process of a `torchrun` or `accelerate` launch, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def format_fields(fields: Mapping[str, float]) -> str:
    """`loss 0.132  reward 0.5`: four digits each."""
    return "  ".join(f"{name} {value:.4g}" for name, value in fields.items())


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def plain_wait(elapsed: float) -> float:
    """Seconds between two plain lines of a phase that runs for so many seconds."""
    return min(LONGEST_WAIT, max(FIRST_WAIT, elapsed / WAITS))


def shows_live(console: Console) -> bool:
    """Whether a line can be drawn again: the stream is a terminal itself, which understands control characters.

    rich calls a file a terminal under FORCE_COLOR. A quiet console would swallow what others print meanwhile.
    """
    return console.is_terminal and console.file.isatty() and not (console.quiet or console.is_dumb_terminal)


class PhaseLine:
    """The progress of one phase.

    On a terminal a live line: a bar, what is done, time so far and left, figures, tokens per second, memory in use.
    Elsewhere the same as lines of plain text: one when the phase begins, then one now and then (`plain_wait`), and one
    for the last step. Tokens per second and the time left are means over the phase, since it began or went on.

    Args:
        description: what is being done.
        total: how many there are, 0 or more.
        console: where to write; standard output by default.
        done: how many of them were done before.
        brief: leave nothing behind but plain lines of a phase that takes long, for phases with a line of their own.
        shows: whether anything is shown, as in the first process.

    Raises:
        ValueError: if the total is negative.
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        console: Console | None = None,
        done: int = 0,
        brief: bool = False,
        shows: bool = True,
    ) -> None:
        if total < 0:
            raise ValueError(f"total must be 0 or more, got {total}")
        self.description, self.total, self.brief, self.shows = description, total, brief, shows
        self.console = console or Console()
        self.done = self._first = done
        self.tokens = 0
        self.fields: dict[str, float] = {}
        self._started = self._last_line = time.perf_counter()
        self._printed: int | None = None
        self._is_live = shows_live(self.console)
        self._progress: Progress | None = None
        if not shows:
            return
        if self._is_live:
            self._progress = self._live()
            self._progress.start()
        elif not brief:
            self._print()

    def update(self, done: int, *, tokens: int = 0, **fields: float) -> None:
        """So many are done, with so many tokens since the phase began; figures stay until there are newer ones."""
        self.done, self.tokens = done, tokens
        self.fields = {**self.fields, **fields}  # a new one: a thread may be drawing the old one
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done)
        elif self.shows and time.perf_counter() - self._last_line >= plain_wait(self.elapsed):
            self._print()

    def pause(self) -> None:
        """Leave the line as it is, for somebody else who writes to the terminal; `resume` draws it again below."""
        if self._progress is not None:
            self._progress.stop()

    def resume(self) -> None:
        """Draw the line again after `pause`."""
        if self._progress is not None:
            self._progress.start()

    def stop(self) -> None:
        """End the line, and print what is done if no plain line has said it; harmless a second time."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        elif self.shows and not self.brief and not self._is_live and self._printed != self.done:
            self._print()
        self.shows = False

    @property
    def elapsed(self) -> float:
        """Seconds since the phase began."""
        return time.perf_counter() - self._started

    def figures(self) -> str:
        """Time so far and left, figures, tokens per second and memory in use, as far as they are known."""
        elapsed, new = self.elapsed, self.done - self._first
        left = elapsed / new * (self.total - self.done) if new > 0 else None
        times = duration(elapsed)
        if left:
            times += f", {duration(left)} left"
        memory = mib_in_use()
        parts = [
            times if new > 0 or elapsed >= 1 else "",
            format_fields(self.fields),
            f"{self.tokens / elapsed:,.0f} tok/s" if self.tokens and elapsed > 0 else "",
            "" if memory is None else f"{memory / 1024:.3g} GiB",
        ]
        return "  ".join(part for part in parts if part)

    def text(self) -> str:
        """What is done, and the figures."""
        return f"{self.description} {self.done}/{self.total}  {self.figures()}".rstrip()

    def _print(self) -> None:
        self._printed, self._last_line = self.done, time.perf_counter()
        plain_line(self.console, self.text())

    def _live(self) -> Progress:
        bar = [BarColumn(BAR_WIDTH)] if self.console.width >= ROOM_FOR_BAR else []
        progress = Progress(
            *bar,
            _Figures(self),
            console=self.console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=self.brief,
        )
        progress.add_task(self.description, total=self.total, completed=self.done)
        return progress


class _Figures(ProgressColumn):
    """What a line says behind its bar; what there is no room for is cut at its end."""

    max_refresh = 1 / REFRESHES_PER_SECOND

    def __init__(self, line: PhaseLine) -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))
        self.line = line

    def render(self, task: Task) -> Text:
        return Text(self.line.text())


@contextmanager
def progress_bar(
    description: str, total: int, *, console: Console | None = None, brief: bool = False
) -> Iterator[Advance]:
    """Show the progress of a block; arguments as of `PhaseLine`.

    Raises:
        ValueError: if the total is negative.
    """
    line = PhaseLine(description, total, console=console, brief=brief, shows=is_main_process())

    def advance(n: int = 1, *, tokens: int = 0, **fields: float) -> None:
        line.update(line.done + n, tokens=line.tokens + tokens, **fields)

    try:
        yield advance
    finally:
        line.stop()


@contextmanager
def loading(what: str, console: Console) -> Iterator[None]:
    """Say that a model is read in this block: on a terminal while it is, elsewhere if it takes long.

    Nothing is left on a terminal, and nothing is said of what is refused at once.

    Args:
        what: the model.
        console: where to write.
    """
    text = f"loading {what}"
    if shows_live(console):
        # No thread draws it: bars of a download take its place, and the last one gives way to the erased line.
        console.print(Text(text), end="", no_wrap=True, overflow="ellipsis")
        try:
            yield
        finally:
            console.control(ERASE)
        return
    late = threading.Timer(FIRST_WAIT, plain_line, (console, text))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def finished_rows(advance: Advance) -> Callable[[Event], None]:
    """What a rollout tells, `on_event`, as progress: one more for every row that is finished, with its tokens."""

    def hear(event: Event) -> None:
        if isinstance(event, Finished):
            advance(1, tokens=len(event.rollout.token_ids))

    return hear


def plain_line(console: Console, text: str) -> None:
    """One line of text as it is: no markup, no colours, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
