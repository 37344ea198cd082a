"""The learner against TRL's and against its own simpler forms: peak memory and time of one step, as ratios.

Gates, before any figure: the reverse replay and a checkpoint per segment give plain autograd's log-probabilities and
gradients; with a window that is never full, our log-probabilities are those of TRL's learner on the same weights.

Every figure comes from a child process of its own (`learner_case.py`). Time and memory are measured in different
children: for memory the C library is told to return what is freed at once, which costs time. "device" is the peak of
the resident set over the model at rest, less the K/V log, which `kv_log="host"` keeps off an accelerator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.learner_case import LEARNERS, TRL_LEARNERS, Case, build_model, build_rollout, logprobs_of, prepare
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide

GATE = 2e-4
CHILD_SECONDS = 3600
MEMORY_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0",
}  # fmt: skip
CASES = {
    "quick": [Case(shape="smollm2_slice", learner="reverse", tokens=n, window=128) for n in (512, 1024)],
    "slice_512": [Case(shape="smollm2_slice", learner="reverse", tokens=n, window=512) for n in (1024, 4096, 16384)],
    "slice_128": [Case(shape="smollm2_slice", learner="reverse", tokens=n, window=128) for n in (1024, 4096, 16384)],
    "smollm2": [Case(shape="smollm2", learner="reverse", tokens=n, window=512) for n in (512, 1024, 3072, 4096)],
    "qwen3b": [Case(shape="qwen3b_slice", learner="reverse", tokens=n, window=512) for n in (1024, 4096, 16384)],
}
RATIOS = (("peak", "device_mib"), ("time", "ms_per_token"), ("cpu", "cpu_ms_per_token"))
"""CPU time of one thread does not see what else the machine does."""
LONGEST = {"plain": 4096, "checkpoint": 4096}
"""The simpler forms keep more than 24 GB affords beyond this length."""


def check_gates(console: Console) -> None:
    """Equality of all learners on a small case.

    Raises:
        RuntimeError: if a gate is not green.
    """
    found = {}
    for learner in [name for name in LEARNERS if name != "reuse"]:  # random records: tests/parity/test_reuse.py
        case = Case(shape="smollm2_slice", learner=learner, tokens=96, window=128 if learner in TRL_LEARNERS else 32)
        model = build_model(case)
        _same_adapter(model)
        full = replace(case, learner="reverse", window=128) if learner in TRL_LEARNERS else None
        prepare(model, case)
        rollout = build_rollout(case, case.tokens)
        scored = logprobs_of(model, rollout, case)
        scored.sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        if full is not None:
            ours = build_model(full)
            _same_adapter(ours)
            with torch.no_grad(), ours.disable_adapter(), model.disable_adapter():
                gap = (logprobs_of(ours, rollout, full) - logprobs_of(model, rollout, case)).abs().max().item()
            _require(console, f"base log-probabilities, ours against {learner}'s, full cache", gap)
        else:
            found[learner] = (scored.detach(), gradients)
    scored, gradients = found["plain"]
    for learner in ("reverse", "layers", "checkpoint"):
        theirs, their_gradients = found[learner]
        _require(console, f"log-probabilities, {learner} against plain autograd", (theirs - scored).abs().max().item())
        gap = max(
            ((their_gradients[name] - value).norm() / value.norm().clamp_min(1e-12)).item()
            for name, value in gradients.items()
            if value.norm() > 0
        )
        _require(console, f"gradients (relative), {learner} against plain autograd", gap)


def _same_adapter(model: torch.nn.Module) -> None:
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)


def _require(console: Console, what: str, gap: float) -> None:
    if not gap < GATE:
        raise RuntimeError(f"{what} differ by {gap:.1e} (allowed {GATE:.0e}); no figure is reported")
    console.print(f"gate: {what} agree to {gap:.1e}")


def measure_case(case: Case, memory: bool) -> dict[str, float]:
    """Run one child process and read its line.

    Raises:
        RuntimeError: with its last words, if it failed.
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.learner_case", json.dumps(asdict(case))],
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(case.threads), **(MEMORY_ENVIRONMENT if memory else {})},
    )
    if run.returncode != 0:
        raise RuntimeError(f"{case} failed: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    measured: dict[str, float] = json.loads(run.stdout.strip().splitlines()[-1])
    return measured


def benchmark_learner(
    console: Console, cases: Sequence[Case], learners: Sequence[str] = LEARNERS, *, one_child: bool = False
) -> list[dict[str, Any]]:
    """One record per case and learner: peak, log and seconds, and ratios to TRL's learner on the same tokens.

    With `one_child` the time is that of the process whose memory is measured: fair where single tensors are large.
    """
    check_gates(console)
    jobs = [
        replace(case, learner=learner)
        for case in cases
        for learner in learners
        if case.tokens <= LONGEST.get(learner, case.tokens)
    ]
    records: list[dict[str, Any]] = []
    with progress_bar("learner steps", 2 * len(jobs), console=console) as advance:
        for job in jobs:
            memory = measure_case(job, memory=True)
            advance(1)
            timed = memory if one_child else measure_case(job, memory=False)
            advance(1)
            records.append(
                {
                    **asdict(job),
                    "device_mib": memory["peak_mib"] - memory["log_mib"],
                    "log_mib": memory["log_mib"],
                    "ms_per_token": 1000 * timed["seconds"] / job.tokens,
                    "cpu_ms_per_token": 1000 * timed["cpu_seconds"] / job.tokens,
                }
            )
    for record in records:
        for learner in TRL_LEARNERS:
            base = next((r for r in records if r["learner"] == learner and _same_tokens(r, record)), None)
            if base is not None:
                record.update({f"{ratio}_over_{learner}": record[field] / base[field] for ratio, field in RATIOS})
    return records


def _same_tokens(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("shape", "tokens", "window", "dtype", "threads"))


def print_records(console: Console, records: list[dict[str, Any]]) -> None:
    """A table per shape and window, narrow enough for 80 columns."""
    console.print("one learner step; device: peak over the model at rest, without the K/V log", soft_wrap=True)
    for title, chosen in _by_case(records).items():
        table = Table(title=title, title_justify="left")
        for name in ("tokens", "learner"):
            table.add_column(name)
        for name in ("MiB", "log MiB", "ms/token", "peak/TRL", "time/TRL", "CPU/TRL"):
            table.add_column(name, justify="right")
        for record in chosen:
            names = [f"{ratio}_over_trl" for ratio, _ in RATIOS]
            ratios = [f"{record[name]:.3f}" if name in record else "-" for name in names]
            table.add_row(
                str(record["tokens"]), record["learner"], f"{record['device_mib']:.0f}", f"{record['log_mib']:.1f}",
                f"{record['ms_per_token']:.2f}", *ratios,
            )  # fmt: skip
        print_wide(table, console)


def _by_case(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The records of every shape and window, under a title."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(f"{SHAPES[record['shape']]}, window {record['window']}", []).append(record)
    return found


SHAPES = {
    "smollm2": "SmolLM2-135M",
    "smollm2_slice": "SmolLM2-135M, 4 layers",
    "qwen3b_slice": "Qwen2.5-3B, 4 layers",
    "0.5b": "Qwen2.5-0.5B",
    "tiny": "embedded reasoner",
}
TITLES = {
    "reverse": "ours",
    "layers": "ours, checkpoint_layers",
    "reuse": "ours, reuse",
    "plain": "plain autograd",
    "checkpoint": "a checkpoint per segment",
    "trl": "TRL",
    "trl_tiles": "TRL, head in tiles of 256",
}
"""What tables and pictures call them."""


def plot_records(records: list[dict[str, Any]], path: Path) -> Path:
    """Peak and time per token against length, one panel pair per shape and window."""
    panels = []
    for title, chosen in _by_case(records).items():
        for field, label in (("device_mib", "device peak (MiB)"), ("ms_per_token", "ms per token")):
            series = {
                TITLES[learner]: (
                    [float(r["tokens"]) for r in chosen if r["learner"] == learner],
                    [r[field] for r in chosen if r["learner"] == learner],
                )
                for learner in dict.fromkeys(r["learner"] for r in chosen)
            }
            panels.append(Panel(title=title, x_label="thought tokens", y_label=label, series=series))
    return plot_curves(path, panels)


def run(
    console: Console,
    names: Sequence[str],
    learners: Sequence[str],
    output: Path,
    *,
    threads: int,
    dtype: str,
    lengths: Sequence[int] | None,
    one_child: bool,
) -> None:
    """Measure, print, and write results.json and a picture.

    Raises:
        ValueError: if none of the sizes has one of the lengths.
    """
    sizes = [case for name in names for case in CASES[name] if lengths is None or case.tokens in lengths]
    if not sizes:
        known = sorted({case.tokens for name in names for case in CASES[name]})
        raise ValueError(f"lengths {list(lengths or ())} are none of {known}, which {list(names)} has")
    cases = [replace(case, threads=threads, dtype=dtype) for case in sizes]
    records = benchmark_learner(console, cases, learners, one_child=one_child)
    print_records(console, records)
    write_results(output / "learner.json", {"records": records, "environment": environment()})
    console.print(
        f"results: {output / 'learner.json'}, {plot_records(records, output / 'learner.png')}", soft_wrap=True
    )
