"""Ctrl-C: the first one ends the run in an orderly way, a second one at once. Neither prints a traceback."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
UNANSWERED_SECONDS = 1.0
HEARD = b"\nCtrl-C was heard, and compiled code has to return first; Ctrl-C again leaves at once\n"
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
_LEAVING = threading.Lock()
_ANSWERED = threading.Event()


@contextmanager
def two_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for the first Ctrl-C of the block and leave the process at the second.

    It is meant for a process that ends with the block: after a first Ctrl-C a second one still counts behind it.

    A library may be slow to hand on the first one, or lose it; nobody should have to look for the process id. Python
    calls handlers between two instructions only, and counts signals that come before as one, so that a thread counts
    them as they arrive: it says that the first one was heard, and ends the process, also while compiled code works.

    Where SIGINT is ignored, as in what a script starts in the background, it stays ignored.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, _first)
    told, fd_before = _watch()
    try:
        yield
    finally:
        # After a first one the process is about to end, and a second one may still come while it does.
        if signal.getsignal(signal.SIGINT) is _first:
            signal.signal(signal.SIGINT, before)
            signal.set_wakeup_fd(fd_before)
            os.close(told)  # which ends the thread


def answered() -> None:
    """Note that Python has called a handler for the first Ctrl-C, which says or does something about it."""
    _ANSWERED.set()


def _watch() -> tuple[int, int]:
    """Start the thread that leaves at the second Ctrl-C.

    Returns:
        The end of a pipe that signals are written to, and the file descriptor that they were written to before.
    """
    _deaf_children()
    _ANSWERED.clear()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def count() -> None:
        presses = 0
        while arrived := os.read(heard, 1):
            presses += arrived[0] == signal.SIGINT
            if presses == 2:
                _leave()
            if presses and not _ANSWERED.is_set():
                again, _, _ = select.select([heard], [], [], UNANSWERED_SECONDS)
                if not again and not _ANSWERED.is_set():
                    os.write(2, HEARD)
        os.close(heard)

    threading.Thread(target=count, name="interrupts", daemon=True).start()
    return told, before


@cache
def _deaf_children() -> None:
    """Let forked children write nothing to the pipe: a terminal sends each Ctrl-C to them as well."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _first(number: int, frame: FrameType | None) -> NoReturn:
    answered()
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
