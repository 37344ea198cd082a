"""The answer worker ends with its parent, whatever it is doing, and with nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from thoughtcache.tasks.maths import answers
from thoughtcache.tasks.maths.answers import check_math_answer

ENDLESS = r"\boxed{9^{9^{9^{9}}}}"
SCRIPT = Path(answers.__file__).with_name("answer_worker.py")
PARENT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("answers", sys.argv[1])  # alone: the package would import torch
answers = importlib.util.module_from_spec(spec)
sys.modules["answers"] = answers
spec.loader.exec_module(answers)
answers.check_math_answer(sys.argv[2] + "1}", "2")
print(answers._WORKER._process.pid, flush=True)
answers.check_math_answer(sys.argv[3], "3", timeout_seconds=600.0)
"""
PATIENCE_SECONDS = 60.0  # how long a test waits for what happens at once


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_gone(process: psutil.Process) -> bool:
    """Whether it ended; nobody may have asked for its exit code yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_trainer_takes_its_worker_along() -> None:
    command = [sys.executable, "-c", PARENT, answers.__file__, answers.BOX, ENDLESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        before = worker.cpu_times().user
        assert wait_until(lambda: worker.cpu_times().user > before + 0.3), "it compares"
        parent.kill()
        parent.wait()
        gone = wait_until(lambda: is_gone(worker))
        if not gone:
            worker.kill()
        assert gone


@contextmanager
def bare_worker(parent: int) -> Iterator[subprocess.Popen[str]]:
    """A worker that is spoken to by hand; ready for requests."""
    command = [sys.executable, "-P", str(SCRIPT), str(parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process
        finally:
            process.kill()


def test_processor_time_is_bounded_by_the_system() -> None:
    """What is left where the kernel does not tell a process that its parent ended."""
    with bare_worker(os.getpid()) as process:
        assert process.stdin is not None
        request = {"completion": ENDLESS, "reference": r"\boxed{3}", "cpu_seconds": 1}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert process.wait(timeout=PATIENCE_SECONDS) == -signal.SIGXCPU


def test_a_worker_without_its_parent_ends_without_a_request() -> None:
    with bare_worker(parent=1 + os.getpid()) as process:
        assert process.wait(timeout=PATIENCE_SECONDS) == 1


def test_the_end_of_the_thread_that_asked_first_does_not_end_the_worker() -> None:
    answers._WORKER.close()
    with ThreadPoolExecutor(max_workers=1) as pool:
        assert not pool.submit(check_math_answer, r"\boxed{1}", "2").result().correct
    process = answers._WORKER._process
    assert process is not None
    assert check_math_answer(r"\boxed{1/2}", "0.5").correct
    assert answers._WORKER._process is process
    assert process.poll() is None


def test_a_worker_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers.sys, "executable", "/nonexistent/python")
    with pytest.raises(FileNotFoundError, match="nonexistent"):
        answers._Worker().ask({}, 1.0)
