"""The process in which answers are parsed and compared; `pool.py` starts it and ends it when time is up.

Simplifying an expression that a model wrote can take for ever (`9^{9^{9^9}}`) and Python code cannot interrupt it
from a thread, so it runs where it can be killed. One JSON object per line in each direction:

    request   {"answer": str, "reference": str, "cpu_seconds": int}     both without words around them
    reply     {"parsed": bool, "correct": bool, "last": bool}, or {"error": traceback}; `last`: wants to end

The file is run by its path, as a script, with the process id of its parent as argument: importing the package (and
torch) in the worker would cost seconds. The time bound is the parent's; a worker whose parent was killed ends by itself
(`_end_with_parent`), and each request has a bound on its processor time in case nothing else works.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

MEMORY_LIMIT_BYTES = 4 * 1024**3
"""Address space of the worker: a runaway expression ends as a `MemoryError` here, not on the training machine."""

TIRED_BYTES = 512 * 1024**2
"""A worker that holds more than this after an answer is replaced by a fresh one."""

PARENT_CHECK_SECONDS = 0.5
PR_SET_PDEATHSIG = 1

TINY = 1e-3
RELATIVE_TOLERANCE = 1e-3
"""Numbers below `TINY` must agree to this share of the reference as well."""


def compare(answer: str, reference: str) -> dict[str, Any]:
    """Parse both formulas and compare them.

    math-verify catches what sympy raises on malformed expressions and returns an empty list for them; its own
    alarms stay off.
    """
    import math_verify

    found, expected = (math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (answer, reference))
    # The result is the parsed expression followed by the text it was read from, or the text alone.
    parsed = all(any(not isinstance(item, str) for item in items) for items in (found, expected))
    if not parsed:
        return {"parsed": False, "correct": False}
    correct = bool(math_verify.verify(expected, found, timeout_seconds=None)) and not _differ_in_scale(expected, found)
    return {"parsed": True, "correct": correct}


def _differ_in_scale(expected: list[Any], found: list[Any]) -> bool:
    """Whether two tiny numbers that math-verify rounded to the same sixth decimal are different numbers.

    It rounds absolutely: 5e-19 and 2.88e-19 are both 0.000000 to it.
    """
    if not all(getattr(items[0], "is_number", False) and items[0].is_real for items in (expected, found)):
        return False
    wanted, given = (float(items[0].evalf()) for items in (expected, found))
    if max(abs(wanted), abs(given)) >= TINY:
        return False
    return abs(wanted - given) > RELATIVE_TOLERANCE * abs(wanted)


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _memory_bytes() -> int:
    """Memory that this process holds now, sympy keeps what it has computed; 0 where the system does not say.

    The peak of `getrusage` is no measure: a process begins with the peak of the one that started it.
    """
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", encoding="ascii") as sizes:
        return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _limit_processor_time(cpu_seconds: int) -> None:
    """End this process after so much more processor time, also inside one endless call of C code."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        limit = math.ceil(time.process_time()) + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _end_with_parent(parent: int) -> None:
    """End this process when its parent is gone, however the parent ended.

    On Linux the kernel does it at once, when the *thread* that started this process ends (`pool.py` keeps that
    thread). Elsewhere a thread looks for the parent; it cannot while one call of C code holds the interpreter, and the
    bound on processor time is left.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    def watch() -> None:
        while os.getppid() == parent:  # the first look is for a parent that ended before the kernel was asked
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer(line: str) -> dict[str, Any]:
    request = json.loads(line)
    try:
        _limit_processor_time(request["cpu_seconds"])
        return {**compare(request["answer"], request["reference"]), "last": _memory_bytes() > TIRED_BYTES}
    except Exception:  # noqa: BLE001 - not swallowed: the parent raises it with this traceback
        return {"error": traceback.format_exc()}


def main() -> None:
    """Say that the libraries are loaded, then answer requests until the parent closes the pipe."""
    replies = sys.stdout
    sys.stdout = sys.stderr  # a library that prints must not write into the protocol
    _end_with_parent(int(sys.argv[1]))
    _limit_memory()
    logging.disable(logging.WARNING)  # "timeout is disabled": the parent holds the clock

    import math_verify  # noqa: F401 - loaded before the clock starts

    replies.write("{}\n")
    replies.flush()
    for line in sys.stdin:
        replies.write(json.dumps(_answer(line)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
