"""One check: a name, what it needs, and a function that returns figures with their limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.sampler.figures import Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How large the checks are.

    Attributes:
        name: "full" (a GPU) or "small" (a CPU, in seconds).
        model: shape, as in `learner_case.build_config`.
        slice_layers: layers of the model where its depth would only cost time.
        profiled_layers: the same under the profiler, which is slow.
        parity_tokens: thoughts of the parity checks; the naive execution runs them one by one.
        parity_window: resident thoughts there.
        window: resident thoughts where time and memory are measured.
        batch: slots of the sampler there.
        flat_tokens: a short and a long rollout of the sampler.
        flat_learner_tokens: the same of the learner.
        profile_tokens: a short and a long rollout under the profiler.
        profile_learner_tokens: of a learner step there.
        depths: positions at which decoding is timed against `generate`.
        learner_tokens: lengths at which the learner is timed against TRL's.
        learner_window: resident thoughts there.
    """

    name: str
    model: str
    slice_layers: int
    profiled_layers: int
    parity_tokens: int
    parity_window: int
    window: int
    batch: int
    flat_tokens: tuple[int, int]
    flat_learner_tokens: tuple[int, int]
    profile_tokens: tuple[int, int]
    profile_learner_tokens: int
    depths: tuple[int, ...]
    learner_tokens: tuple[int, ...]
    learner_window: int


SIZES = {
    "full": Sizes(
        name="full", model="0.5b", slice_layers=4, profiled_layers=2, parity_tokens=48, parity_window=16,
        window=256, batch=8, flat_tokens=(512, 2048), flat_learner_tokens=(2048, 16384), profile_tokens=(32, 64),
        profile_learner_tokens=2048, depths=(1024, 4096, 16384), learner_tokens=(3072, 16384), learner_window=1024,
    ),
    "small": Sizes(
        name="small", model="tiny", slice_layers=2, profiled_layers=2, parity_tokens=24, parity_window=8,
        window=8, batch=3, flat_tokens=(32, 128), flat_learner_tokens=(64, 256), profile_tokens=(20, 36),
        profile_learner_tokens=64, depths=(32, 64), learner_tokens=(48, 96), learner_window=16,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """Where and how large.

    Attributes:
        device: "cuda" or "cpu".
        sizes: how large.
    """

    device: torch.device
    sizes: Sizes

    @property
    def on_gpu(self) -> bool:
        """Whether CUDA is there to be asked."""
        return self.device.type == "cuda"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One entry of the list.

    Attributes:
        name: what is claimed.
        run: returns the figures; one that is out of its limit fails the check.
        needs_cuda: "not run" on a CPU.
        seconds: time limit.
    """

    name: str
    run: Callable[[Context], Sequence[Figure]]
    needs_cuda: bool = False
    seconds: float = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a check.

    Attributes:
        name: of the check.
        status: "passed", "failed" (a figure is out of its limit), "error" (it ended with an exception or took too
            long), or "not run".
        figures: what was measured.
        message: why it was not run, or the last words of the process.
        elapsed_seconds: of the check.
    """

    name: str
    status: str
    figures: list[Figure] = field(default_factory=list)
    message: str = ""
    elapsed_seconds: float = 0.0


def judge(name: str, figures: Sequence[Figure], elapsed_seconds: float) -> Outcome:
    """Passed, if every figure with a limit is inside it."""
    failed = any(figure.verdict() == "FAIL" for figure in figures)
    return Outcome(
        name=name, status="failed" if failed else "passed", figures=list(figures), elapsed_seconds=elapsed_seconds
    )
