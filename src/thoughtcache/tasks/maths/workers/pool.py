"""Worker processes that compare answers by computer algebra, each within a bound on time and memory.

math-verify bounds its time with SIGALRM, which only the main thread may use, and which servers and trainers with
rollout threads cannot. Here a worker is killed from outside when its time is up, so any thread may ask. As many
questions are compared at once as there are workers; the others wait, and their time begins when they are asked.

This file needs the standard library alone.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

STARTUP_SECONDS = 120.0
DEFAULT_WORKERS = 2


class AnswerPool:
    """Up to `num_workers` processes of `answer_worker.py`, each started when it is first needed."""

    def __init__(self, num_workers: int = DEFAULT_WORKERS) -> None:
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers: list[_Worker] = []
        self._changing = threading.Lock()
        self.resize(num_workers)

    @property
    def num_workers(self) -> int:
        """Questions that are compared at once."""
        return len(self._workers)

    def resize(self, num_workers: int) -> None:
        """Have so many workers. More are there at once; fewer only when those that are too many have replied.

        Askers that wait meanwhile get one of the workers that stay: there is one queue, and it is never empty for good.

        Raises:
            ValueError: if it is below 1.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, allowed: 1 or more; the default is {DEFAULT_WORKERS}")
        with self._changing:
            while len(self._workers) < num_workers:
                worker = _Worker()
                self._workers.append(worker)
                self._idle.put(worker)
            while len(self._workers) > num_workers:
                worker = self._idle.get()
                self._workers.remove(worker)
                worker.close()

    def forget(self) -> None:
        """Begin with fresh workers and leave the old ones to whoever started them, as after a fork."""
        count = self.num_workers
        self._idle, self._workers, self._changing = queue.LifoQueue(), [], threading.Lock()
        self.resize(count)

    def ask(self, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any] | None:
        """The reply of a worker; None if the bound on time or memory ended it.

        Raises:
            RuntimeError: if the worker fails for a reason that is not the answer's fault.
        """
        idle = self._idle
        worker = idle.get()
        try:
            # The same number of processor seconds: the bound that is left if this process is killed.
            bounded = {**request, "cpu_seconds": math.ceil(timeout_seconds) + 1}
            reply = worker.exchange(json.dumps(bounded), timeout_seconds)
        finally:
            idle.put(worker)
        if reply is not None and "error" in reply:
            raise RuntimeError(f"comparing {request!r} failed in the answer worker:\n{reply['error']}")
        return reply

    def process_ids(self) -> list[int]:
        """Process ids of the workers that are running."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def close(self) -> None:
        """End all workers; the next question starts new ones."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process, started at the first question and again after each one that had to be killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._owner_pid = 0

    def close(self) -> None:
        """End the process, if this Python process is the one that started it."""
        if self.process is not None and self._owner_pid == os.getpid():
            self.process.kill()
            self.process.communicate()
        self.process = None

    def exchange(self, request: str, timeout_seconds: float) -> dict[str, Any] | None:
        """The reply to one request; None if the worker was ended by a bound."""
        reply = self._exchange(self._running(), request, timeout_seconds)
        if reply is not None and reply.get("last"):
            self.close()
        return reply

    def _running(self) -> subprocess.Popen[str]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.close()
        # -P: what lies beside the script must not hide a library of the same name.
        command = [sys.executable, "-P", str(Path(__file__).with_name("answer_worker.py")), str(os.getpid())]
        process = _start(command)
        self.process, self._owner_pid = process, os.getpid()
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
    """Start a process with pipes, in a session of its own.

    A terminal sends Ctrl-C to all processes of its foreground group. A trainer that finishes its step then still needs
    the worker: an answer whose worker ended by a signal would count as one that exceeded its bounds.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


POOL = AnswerPool()
"""The workers of this Python process; `POOL.resize(8)` for more."""

atexit.register(POOL.close)
if hasattr(os, "register_at_fork"):
    # After a fork the pipes belong to the parent: two askers would read each other's replies.
    os.register_at_fork(after_in_child=POOL.forget)
