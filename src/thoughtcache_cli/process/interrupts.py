"""Ctrl-C: the first one ends the run in an orderly way, a second one at once. Neither prints a traceback."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
_LEAVING = threading.Lock()
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


@contextmanager
def two_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for the first Ctrl-C of the block and leave the process at the second.

    A library may be slow to hand on the first one, or lose it; nobody should have to look for the process id. Python
    calls handlers between two instructions only, and counts signals that come before as one, so that a thread counts
    them as they arrive: it ends the process also while compiled code works.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, told = signal.signal(signal.SIGINT, _first), _watch()
    try:
        yield
    finally:
        # After a first one the process is about to end, and a second one may still come while it does.
        if signal.getsignal(signal.SIGINT) is _first:
            signal.signal(signal.SIGINT, before)
            signal.set_wakeup_fd(-1)
            os.close(told)  # which ends the thread


def _watch() -> int:
    """Start the thread that leaves at the second Ctrl-C; returns the end of a pipe that signals are written to."""
    _deaf_children()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def count() -> None:
        presses = 0
        while arrived := os.read(heard, 1):
            presses += arrived[0] == signal.SIGINT
            if presses == 2:
                _leave()
        os.close(heard)

    threading.Thread(target=count, name="interrupts", daemon=True).start()
    return told


@cache
def _deaf_children() -> None:
    """Let forked children write nothing to the pipe: a terminal sends each Ctrl-C to them as well."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _first(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, _second)
    raise KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> NoReturn:
    _leave()


def _leave() -> NoReturn:
    # Nothing but a system call is safe here: the first one may have stopped anything half-way.
    if not _LEAVING.acquire(blocking=False):
        time.sleep(60)  # the thread, or the handler, is at it
    os.write(2, b"interrupted twice\n")
    if os.isatty(1):
        os.write(1, SHOW_CURSOR)
    os._exit(INTERRUPTED)
