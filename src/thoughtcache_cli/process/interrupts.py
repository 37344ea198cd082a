"""Ctrl-C: the first one ends the run in an orderly way, a second one at once. Neither prints a traceback."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


@contextmanager
def two_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for the first Ctrl-C of the block and leave the process at the second.

    A library may be slow to hand on the first one, or lose it; nobody should have to look for the process id.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        # After a first one the process is about to end, and a second one may still come while it does.
        if signal.getsignal(signal.SIGINT) is _first:
            signal.signal(signal.SIGINT, before)


def _first(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, _second)
    raise KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> NoReturn:
    # Nothing but a system call is safe here: the first one may have stopped anything half-way.
    os.write(2, b"interrupted twice\n")
    if os.isatty(1):
        os.write(1, SHOW_CURSOR)
    os._exit(INTERRUPTED)
