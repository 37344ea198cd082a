"""The answer workers: as many as asked for; each ends with its parent, whatever it is doing, and with nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from thoughtcache.tasks.maths.workers import pool
from thoughtcache.tasks.maths.workers.pool import AnswerPool

ENDLESS = {"answer": "9^{9^{9^{9}}}", "reference": "3"}
EASY = {"answer": r"\sum_{k=1}^{4} k", "reference": "10"}
RIGHT = {"parsed": True, "correct": True, "last": False}
SCRIPT = Path(pool.__file__).with_name("answer_worker.py")
PARENT = """
import importlib.util, json, sys, threading
spec = importlib.util.spec_from_file_location("pool", sys.argv[1])  # alone: the package would import torch
pool = importlib.util.module_from_spec(spec)
sys.modules["pool"] = pool
spec.loader.exec_module(pool)
workers = pool.AnswerPool(2)
def ask(request):
    workers.ask(request, 600.0)
def ask_twice(request):
    threads = [threading.Thread(target=ask, args=(request,), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    return threads
endless = json.loads(sys.argv[2])
threads = ask_twice(endless)
while len(workers.process_ids()) < 2:
    threads[0].join(0.05)
print(*workers.process_ids(), flush=True)
threads[0].join()
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


def test_a_killed_trainer_takes_its_workers_along() -> None:
    command = [sys.executable, "-c", PARENT, pool.__file__, json.dumps(ENDLESS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(number)) for number in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert wait_until(lambda: all(worker.cpu_times().user > 2.0 for worker in workers)), "they compare"
        parent.kill()
        parent.wait()
        gone = wait_until(lambda: all(is_gone(worker) for worker in workers))
        for worker in [] if gone else workers:
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
        request = {**ENDLESS, "cpu_seconds": 1}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert process.wait(timeout=PATIENCE_SECONDS) == -signal.SIGXCPU


def test_a_worker_without_its_parent_ends_without_a_request() -> None:
    with bare_worker(parent=1 + os.getpid()) as process:
        assert process.wait(timeout=PATIENCE_SECONDS) == 1


@pytest.fixture(scope="module")
def workers() -> Iterator[AnswerPool]:
    found = AnswerPool(1)
    yield found
    found.close()


def running(workers: AnswerPool) -> psutil.Process:
    (number,) = workers.process_ids()
    return psutil.Process(number)


def test_the_end_of_the_thread_that_asked_first_does_not_end_the_worker(workers: AnswerPool) -> None:
    with ThreadPoolExecutor(max_workers=1) as threads:
        assert threads.submit(workers.ask, EASY, 60.0).result() == RIGHT
    process = running(workers)
    assert workers.ask({**EASY, "reference": "11"}, 60.0) == {**RIGHT, "correct": False}
    assert running(workers) == process


def test_a_killed_worker_is_a_timeout_and_the_next_one_works(workers: AnswerPool) -> None:
    assert workers.ask(EASY, 60.0) == RIGHT
    process = running(workers)
    killer = threading.Timer(0.3, process.kill)
    killer.start()
    assert workers.ask(ENDLESS, 60.0) is None
    killer.join()
    assert workers.ask(EASY, 60.0) == RIGHT
    assert running(workers) != process


def test_an_error_in_the_worker_is_raised(workers: AnswerPool) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'reference'"):
        workers.ask({"answer": "1"}, 60.0)


def test_workers_compare_at_the_same_time() -> None:
    workers = AnswerPool(2)
    with ThreadPoolExecutor(max_workers=3) as threads:
        assert list(threads.map(lambda _: workers.ask(EASY, 60.0), range(3))) == [RIGHT] * 3
    assert 1 <= len(workers.process_ids()) <= 2
    processes = [psutil.Process(number) for number in workers.process_ids()]
    workers.resize(1)
    assert workers.num_workers == 1
    left = workers.process_ids()
    assert len(left) <= 1
    assert all(wait_until(lambda process=process: is_gone(process)) for process in processes if process.pid not in left)
    with pytest.raises(ValueError, match="num_workers is 0, allowed: 1 or more"):
        workers.resize(0)


def test_askers_return_while_the_number_of_workers_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Askers arrive before, during and after a change that waits; none waits for a worker that is gone."""

    def reply(worker: pool._Worker, request: str, seconds: float) -> dict[str, bool]:
        time.sleep(0.02)
        return dict(RIGHT)

    monkeypatch.setattr(pool._Worker, "exchange", reply)
    workers = AnswerPool(2)
    with ThreadPoolExecutor(max_workers=10) as threads:
        asked = [threads.submit(workers.ask, EASY, 60.0) for _ in range(40)]
        changes = [threads.submit(workers.resize, count) for count in (1, 3, 1, 4, 2)]
        asked += [threads.submit(workers.ask, EASY, 60.0) for _ in range(40)]
        for change in changes:
            change.result(timeout=PATIENCE_SECONDS)
        assert [asker.result(timeout=PATIENCE_SECONDS) for asker in asked] == [RIGHT] * 80
    assert workers.num_workers == workers._idle.qsize() == len(workers._workers)


def test_an_asker_that_arrives_while_a_change_waits_gets_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(pool._Worker, "exchange", lambda worker, request, seconds: go_on.wait(PATIENCE_SECONDS) and {})
    workers = AnswerPool(2)
    threads = [threading.Thread(target=workers.ask, args=(EASY, 60.0), daemon=True) for _ in range(2)]
    change = threading.Thread(target=workers.resize, args=(1,), daemon=True)
    late = threading.Thread(target=workers.ask, args=(EASY, 60.0), daemon=True)
    for thread in [*threads, change, late]:
        thread.start()
        time.sleep(0.1)
    go_on.set()
    for thread in [*threads, change, late]:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert workers.num_workers == 1


def test_a_large_parent_does_not_tire_its_workers() -> None:
    """The peak memory of the parent is inherited; with it every answer would need a new worker."""
    block = b"x" * (600 * 2**20)
    workers = AnswerPool(1)
    assert workers.ask(EASY, 60.0) == RIGHT
    workers.close()
    assert len(block) == 600 * 2**20


def test_a_fork_begins_with_workers_of_its_own(workers: AnswerPool) -> None:
    workers.ask(EASY, 60.0)
    process = workers._workers[0].process
    assert process is not None
    workers.forget()
    assert workers.process_ids() == []
    assert process.poll() is None, "it is the parent's"
    process.kill()
    process.communicate()


def test_a_worker_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/nonexistent/python")
    with pytest.raises(FileNotFoundError, match="nonexistent"):
        AnswerPool(1).ask({}, 1.0)
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="exit code 1"):
        AnswerPool(1).ask({}, 1.0)


PRESSED = """
import importlib.util, json, os, signal, sys, threading
spec = importlib.util.spec_from_file_location("pool", sys.argv[1])
pool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pool)
signal.signal(signal.SIGINT, lambda *_: None)  # as a trainer that finishes its step
workers, replies = pool.AnswerPool(1), []
asking = threading.Thread(target=lambda: replies.append(workers.ask(json.loads(sys.argv[2]), 60.0)))
asking.start()
while not workers.process_ids():
    pass
os.killpg(0, signal.SIGINT)
asking.join()
before = workers.process_ids()
os.killpg(0, signal.SIGINT)
replies.append(workers.ask(json.loads(sys.argv[2]), 60.0))
print(json.dumps([replies, before == workers.process_ids()]))
"""


def test_the_interrupt_of_a_terminal_does_not_reach_a_worker_that_starts_or_waits() -> None:
    command = [sys.executable, "-c", PRESSED, pool.__file__, json.dumps(EASY)]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [[RIGHT, RIGHT], True]
