"""pytest plugin: the substitution, and the verdict over every test: passed, refused by us, or not applicable."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest

import thoughtcache as tc
from tools.peers.reasons import NOT_APPLICABLE, REFUSALS

PACKAGE = str(Path(tc.__file__).parent)
DROPPED = ("lora_dropout",)
"""Options that stand in every row of the suite and are refused: taken out, so that the rest of the row is tried."""
verdicts: dict[str, tuple[str, str]] = {}

try:
    import diffusers  # noqa: F401
except ImportError:  # the suite asks only whether a model is a pipeline of diffusers; none is
    stand_in: Any = ModuleType("diffusers")
    stand_in.__spec__ = ModuleSpec("diffusers", None)
    stand_in.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    sys.modules["diffusers"] = stand_in

peft.LoraConfig = tc.ThoughtConfig  # in this process, before the suite imports the name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the rows of LoRA, which are ours now; rows of other PEFT methods have nothing to do with us."""
    kept, other = [], []
    for item in items:
        parameters = getattr(item, "callspec", None)
        row = parameters.params if parameters else {}
        if not about_lora(item, row):
            other.append(item)
            continue
        if "config_kwargs" in row:
            row["config_kwargs"] = {k: v for k, v in row["config_kwargs"].items() if k not in DROPPED}
        kept.append(item)
    config.hook.pytest_deselected(items=other)
    items[:] = kept


def about_lora(item: Any, row: dict[str, Any]) -> bool:
    """Whether a test is given our configuration, or makes one of its own."""
    if "config_cls" in row:
        return row["config_cls"] is tc.ThoughtConfig
    given = any(isinstance(value, tc.ThoughtConfig) for value in row.values())
    return given or re.search(r"\bLoraConfig\b", inspect.getsource(item.function)) is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """Judge a test when it ends, wherever it ends."""
    report = yield
    if report.when == "call" or not report.passed:
        verdict = judge(item, report, call)
        if report.when == "call" or verdict[0] != "passed":
            verdicts[item.nodeid] = verdict
    return report


def judge(item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[Any]) -> tuple[str, str]:
    """(verdict, reason) of one test."""
    if report.passed:
        return "passed", ""
    error = call.excinfo
    assert error is not None
    ours = isinstance(error.value, ValueError) and str(error.traceback[-1].path).startswith(PACKAGE)
    if ours and any(part in str(error.value) for part in REFUSALS):
        return "refused", str(error.value)
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else f"{type(error.value).__name__}: {error.value}"
    name = item.nodeid.rpartition("::")[2].partition("[")[0]
    for entry in NOT_APPLICABLE:
        if name in entry.tests and entry.text in text:
            return "not applicable", entry.reason
    return "left", text


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail for what is left, and for nothing else."""
    left = any(verdict == "left" for verdict, _ in verdicts.values())
    session.exitstatus = pytest.ExitCode.TESTS_FAILED if left or not verdicts else pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table."""
    write = terminalreporter.write_line
    terminalreporter.section("PEFT's generic suite with ThoughtConfig in the place of LoraConfig")
    counts = Counter(verdict for verdict, _ in verdicts.values())
    write(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("passed", "refused", "not applicable", "left")))
    passed = Counter(
        test.rpartition("::")[2].partition("[")[0] for test, (found, _) in verdicts.items() if found == "passed"
    )
    write(f"\npassed: {', '.join(f'{name} ({count})' for name, count in sorted(passed.items()))}")
    for verdict in ("refused", "not applicable", "left"):
        by_reason: dict[str, list[str]] = {}
        for test, (found, reason) in verdicts.items():
            if found == verdict:
                by_reason.setdefault(reason.splitlines()[0], []).append(test.rpartition("::")[2])
        for reason, tests in sorted(by_reason.items(), key=lambda entry: -len(entry[1])):
            names = sorted({test.partition("[")[0] for test in tests})
            write(f"\n{verdict}, {len(tests)}: {reason}")
            write(f"    {', '.join(tests if verdict == 'left' else names)}")
