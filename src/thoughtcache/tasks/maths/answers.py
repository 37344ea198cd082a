r"""Decides whether the final answer of a completion equals the reference, by math-verify inside a time bound.

    check_math_answer(r"... so \boxed{\frac{1}{2}}", "0.5").correct       # True

What is compared: the content of the *last* `\boxed{}` of the completion; without one, whatever math-verify takes for
the final answer in the last `MAX_TAIL_CHARACTERS` characters ("the answer is ...", the last formula or number).

math-verify bounds its time with SIGALRM, which only the main thread may use, and which servers and trainers with
rollout threads cannot. Here one worker process per Python process does the comparison and is killed when the time
is up, so every thread may call. Comparisons of one process run one after the other.

Not covered: proofs, units, partial credit.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from thoughtcache.tasks.verdict import Verdict

MAX_TAIL_CHARACTERS = 2000
MAX_ANSWER_CHARACTERS = 1000
STARTUP_SECONDS = 120.0
BOX = r"\boxed{"
SCIENTIFIC = re.compile(r"(?<![\w.\\}])([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)(?!\w)")
"""`4.5e33`: a fifth of the Minerva references; math-verify reads the `e` as Euler's number."""


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}` of at most `MAX_ANSWER_CHARACTERS`, braces balanced; None without."""
    start = text.rfind(BOX)
    while start >= 0:
        begin, depth = start + len(BOX), 1
        for index in range(begin, min(len(text), begin + MAX_ANSWER_CHARACTERS + 1)):
            if text[index] in "{}" and text[index - 1] != "\\":
                depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return text[begin:index].strip()
        start = text.rfind(BOX, 0, start)
    return None


def check_math_answer(completion: str, reference: str, timeout_seconds: float = 5.0) -> Verdict:
    r"""Compare the final answer of `completion` with `reference` (LaTeX or plain, with or without `\boxed{}`).

    Safe in any thread. A malformed completion is a result (`parsed=False`), never an exception.

    Raises:
        ValueError: if the reference is empty or too long, or the time is not positive.
        RuntimeError: if the worker process fails for a reason that is not the answer's fault.
    """
    if timeout_seconds <= 0:
        raise ValueError(f"timeout_seconds is {timeout_seconds}, allowed: above 0; the default is 5")
    expected = last_boxed(reference)
    expected = reference.strip() if expected is None else expected
    if not 0 < len(expected) <= MAX_ANSWER_CHARACTERS:
        raise ValueError(
            f"reference is {len(expected)} characters long, allowed: 1 to {MAX_ANSWER_CHARACTERS}; "
            "drop examples without a short final answer"
        )
    boxed = last_boxed(completion)
    if boxed is not None and "".join(boxed.split()) == "".join(expected.split()):
        return Verdict(correct=True, parsed=True, timed_out=False, extracted=boxed)
    candidate = completion[-MAX_TAIL_CHARACTERS:] if boxed is None else f"{BOX}{boxed}}}"
    request = {"completion": _with_powers(candidate), "reference": _with_powers(f"{BOX}{expected}}}")}
    reply = _WORKER.ask(request, timeout_seconds)
    if reply is None:
        return Verdict(correct=False, parsed=False, timed_out=True, extracted=boxed)
    extracted = boxed if boxed is not None else reply["extracted"]
    return Verdict(correct=reply["correct"], parsed=reply["parsed"], timed_out=False, extracted=extracted)


def _with_powers(text: str) -> str:
    return SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)


class _Worker:
    """One `answer_worker.py` process, started at the first question and again after each one that had to be killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner_pid = 0

    def ask(self, request: dict[str, str], timeout_seconds: float) -> dict[str, Any] | None:
        """The reply; None if the bound on time or memory ended the worker."""
        with self._lock:
            process = self._running()
            # Comparing in the same number of processor seconds: the bound that is left if this process is killed.
            bounded = {**request, "cpu_seconds": math.ceil(timeout_seconds) + 1}
            reply = self._exchange(process, json.dumps(bounded), timeout_seconds)
        if reply is not None and "error" in reply:
            raise RuntimeError(f"comparing {request!r} failed in the answer worker:\n{reply['error']}")
        return reply

    def close(self) -> None:
        """End the process, if this Python process is the one that started it."""
        if self._process is not None and self._owner_pid == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _running(self) -> subprocess.Popen[str]:
        # After a fork the pipes belong to the parent: two askers would read each other's replies.
        if self._process is not None and self._owner_pid == os.getpid() and self._process.poll() is None:
            return self._process
        self.close()
        # -P: what lies beside the script must not hide a library of the same name.
        command = [sys.executable, "-P", str(Path(__file__).with_name("answer_worker.py")), str(os.getpid())]
        process = _start(command)
        self._process, self._owner_pid = process, os.getpid()
        if self._exchange(process, None, STARTUP_SECONDS) is None:
            raise RuntimeError(f"the answer worker did not start within {STARTUP_SECONDS:.0f} seconds: {command}")
        return process

    def _exchange(
        self, process: subprocess.Popen[str], request: str | None, timeout_seconds: float
    ) -> dict[str, Any] | None:
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout_seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                process.stdin.write(request + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""  # the worker is gone; its exit code below says why
        except BaseException:
            self.close()  # interrupted half-way: the next reader would get this reply
            raise
        finally:
            timer.cancel()
            timer.join()
        if line.endswith("\n") and not expired.is_set():
            reply: dict[str, Any] = json.loads(line)
            return reply
        exit_code = process.wait()
        self.close()
        # Ended by the clock, or by a signal (memory, stack): the answer exceeded its bounds. Else the worker is broken.
        if expired.is_set() or exit_code < 0:
            return None
        raise RuntimeError(f"the answer worker ended with exit code {exit_code}; its error is printed above")


def _start(command: list[str]) -> subprocess.Popen[str]:
    """Start a process with pipes; on Linux from a thread that lives as long as the process does.

    The worker asks Linux to end it with its parent, which for Linux is the thread that started it: the end of a thread
    of some pool would end the worker.
    """
    if sys.platform != "linux":
        return _open(command)
    started: Future[subprocess.Popen[str]] = Future()

    def start_and_stay() -> None:
        try:
            process = _open(command)
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(process)
        with suppress(ChildProcessError):  # its exit code was asked for first
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    threading.Thread(target=start_and_stay, name="answer worker", daemon=True).start()
    return started.result()


def _open(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")


_WORKER = _Worker()
atexit.register(_WORKER.close)
