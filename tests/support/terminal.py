"""Commands as processes of their own, on a pseudo-terminal or with pipes, that can be pressed Ctrl-C."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

SECONDS = 240.0


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        """It does."""
        return True


def hear_interrupts() -> None:
    """Undo that SIGINT is ignored in what a script starts in the background, such as the tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def works(process_id: int, *, seconds: float) -> None:
    """Wait until a process has used so much more processor time than now."""
    process = psutil.Process(process_id)
    goal, patience = process.cpu_times().user + seconds, time.monotonic() + SECONDS
    while process.cpu_times().user < goal:
        assert time.monotonic() < patience, "it does nothing"
        time.sleep(0.01)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Leave no process behind, nor its pipes, whatever the block asserts."""
    with process:
        try:
            yield process
        finally:
            process.kill()


class Process:
    """A running `thoughtcache`, in a process group of its own as a shell starts it; it ends with its `with` block.

    Args:
        arguments: what is typed behind its name.
        folder: where it is started.
        terminal: whether standard output and error are a terminal; else both are one pipe.

    Attributes:
        text: what was printed so far.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, *, terminal: bool) -> None:
        if terminal:
            self._ours, theirs = pty.openpty()
        else:
            self._ours, theirs = os.pipe()
        paths = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "thoughtcache_cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            start_new_session=True,
            preexec_fn=hear_interrupts,
            env={
                **os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TERM": "xterm", "COLUMNS": "120",
                "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
            },
        )  # fmt: skip
        os.close(theirs)
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.returncode is None:  # something failed before its end
            os.killpg(self.process.pid, signal.SIGKILL)
            self.end()

    def wait_for(self, words: str) -> None:
        """Read until these words were printed."""
        while words not in self.text:
            assert self._read(), f"ended without {words!r}:\n{self.text}"

    def press(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C, or another signal; a scheduler sends it to all processes as well."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait(SECONDS)

    def _read(self) -> bool:
        """Take what is printed next; False at the end."""
        ready, _, _ = select.select([self._ours], [], [], SECONDS)
        assert ready, f"nothing more within {SECONDS:.0f} s:\n{self.text}"
        try:
            piece = os.read(self._ours, 65536)
        except OSError:  # a terminal whose other end is closed
            return False
        self.text += piece.decode(errors="replace")
        return bool(piece)
