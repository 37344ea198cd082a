"""What PyTorch's profiler saw: operators, kernels, copies, and where the host waited."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
ON_HOST = ("cpu_op", "cuda_runtime", "cuda_driver")
ATTENTION = "aten::_scaled_dot_product_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Something that ran on the device.

    Attributes:
        name: of the kernel or copy.
        start: microseconds.
        end: microseconds.
    """

    name: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A profile.

    Attributes:
        operators: calls by the name of the operator, of PyTorch or of CUDA's run time.
        on_device: kernels and copies, by start.
    """

    operators: dict[str, int]
    on_device: list[Span]

    @property
    def waits(self) -> int:
        """How often the host waited for the device."""
        return sum(self.operators.get(name, 0) for name in WAITS)

    @property
    def attention(self) -> dict[str, int]:
        """Calls of scaled dot product attention by implementation."""
        found = {}
        for name, count in self.operators.items():
            if name.startswith(ATTENTION) and not name.endswith("_backward"):
                found[name.removeprefix(ATTENTION)] = count
        return found

    @property
    def kernels(self) -> list[Span]:
        """Without copies and fills."""
        return [span for span in self.on_device if not span.name.startswith(("Memcpy", "Memset"))]

    @property
    def busy_share(self) -> float:
        """Share of the time from the first to the last kernel in which a kernel ran; NaN without kernels."""
        kernels = self.kernels
        if not kernels:
            return float("nan")
        whole = max(span.end for span in kernels) - kernels[0].start
        return sum(end - start for start, end in merged(kernels)) / whole

    def copies(self, kind: str) -> list[Span]:
        """Copies of this kind: "DtoH" or "HtoD"."""
        return [span for span in self.on_device if span.name.startswith(f"Memcpy {kind}")]


def watch(run: Callable[[], object], activity: ProfilerActivity) -> Seen:
    """Profile a call. Whoever calls this runs it once before, so that nothing is set up inside.

    Args:
        run: the call.
        activity: CPU for operators, CUDA for kernels, copies and CUDA's run time; both at once take minutes.
    """
    with profile(activities=[activity], acc_events=True) as profiled:
        run()
        if activity == ProfilerActivity.CUDA:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"  # a table of the events takes the profiler minutes
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    operators: dict[str, int] = {}
    on_device = []
    for event in events:
        if event.get("ph") != "X":
            continue
        if event["cat"] in ON_DEVICE:
            on_device.append(Span(name=event["name"], start=event["ts"], end=event["ts"] + event["dur"]))
        elif event["cat"] in ON_HOST:
            operators[event["name"]] = operators.get(event["name"], 0) + 1
    return Seen(operators=operators, on_device=sorted(on_device, key=lambda span: span.start))


def overlapped(copies: list[Span], others: list[Span]) -> float:
    """Share of the time of `copies` in which one of `others` ran as well; NaN without copies."""
    whole = sum(copy.end - copy.start for copy in copies)
    if not whole:
        return float("nan")
    busy, shared = merged(others), 0.0
    for copy in copies:
        shared += sum(max(0.0, min(copy.end, end) - max(copy.start, start)) for start, end in busy)
    return shared / whole


def merged(spans: list[Span]) -> list[tuple[float, float]]:
    """The times in which at least one of them ran."""
    found: list[tuple[float, float]] = []
    for span in sorted(spans, key=lambda span: span.start):
        if found and span.start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], span.end))
        else:
            found.append((span.start, span.end))
    return found
