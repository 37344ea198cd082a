"""What is measured: the full sizes, which the targets are meant for, and quick ones to try everything.

The embedded reasoner has 512 positions, so its long rollouts keep theirs inside the window ("rolling"), and no window
is longer; SmolLM2 has 8192. 65536 tokens under a window of 1024 are sampled by four of its layers, all would take
two hours. Batching is measured on the reasoner alone: the gain is one of rounds, and 96 long sequences of SmolLM2 take
more than an hour here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.sampler.case import Case

Cases = dict[str, list[Case]]

BATCHES = (1, 4, 8, 16, 32)
GENERATE_DEPTH = 1024


def gates(models: Sequence[str]) -> list[Case]:
    """What must be green first."""
    return [
        Case(
            kind="gate",
            model=model,
            batch=2,
            window=16,
            tokens=48 if model == "tiny" else 40,
            positions="rolling" if model == "tiny" else "absolute",
        )
        for model in models
    ]


def full() -> Cases:
    """By name: what the command line chooses from."""
    tiny = Case(kind="positions", model="tiny", positions="rolling")
    real = Case(kind="positions", model="smollm2")
    return {
        "positions": [
            replace(tiny, tokens=17024, at=(1000, 16000), cycles=64),
            replace(tiny, tokens=65536, anchors=False),
            replace(tiny, tokens=8192, window=None),
            replace(real, tokens=8128, prompt=64, at=(500, 4000)),
            replace(real, tokens=1536, prompt=64, window=None),
            replace(real, tokens=65536, prompt=64, window=1024, positions="rolling", layers=4),
        ],
        "generate": [
            replace(real, kind="generate_long", at=(512, 1024, 2048, 4096)),
            replace(real, kind="generate_long", at=(512,), depth=4096, repeats=7),
            replace(real, kind="generate_whole", tokens=256),
        ],
        "trl": [replace(real, kind="trl_turn", tokens=256)],
        "absorption": [
            replace(tiny, kind="absorption", tokens=256 + 16 * 64 + 1),
            replace(real, kind="absorption", tokens=256 + 4 * 64 + 1),
        ],
        "policies": [
            replace(tiny, kind="policies", tokens=256 + 8 * 64 + 1),
            replace(real, kind="policies", tokens=256 + 2 * 64 + 1, repeats=1, depth=4096),
        ],
        "batching": [replace(tiny, kind="batching", batch=16, tokens=2048)],
        "prefill": [replace(real, kind="prefill", batch=16, prompt=512)],
        "batch_window": _batch_window(tiny, (64, 256, 480), BATCHES) + _batch_window(real, (256, 1024), (1, 8, 32)),
        "compile": [replace(case, kind="compiled", tokens=512) for case in (tiny, real)],
    }


def quick() -> Cases:
    """Everything once, on the tiny model; nothing is judged. Compilation alone would take longer than all of it."""
    case = Case(kind="positions", model="tiny", positions="rolling", window=64, prompt=16, judged=False)
    return {
        "positions": [
            replace(case, tokens=1024, at=(200, 900)),
            replace(case, tokens=768, window=None),
        ],
        "generate": [
            replace(case, kind="generate_long", at=(128, 384), repeats=2),
            replace(case, kind="generate_whole", tokens=64, repeats=2),
        ],
        "trl": [replace(case, kind="trl_turn", tokens=64, repeats=2)],
        "absorption": [replace(case, kind="absorption", tokens=64 + 4 * 16 + 1, repeats=2)],
        "policies": [replace(case, kind="policies", tokens=64 + 2 * 16 + 1, repeats=1, depth=256)],
        "batching": [replace(case, kind="batching", tokens=256, mean_length=32, num_prompts=48, repeats=1)],
        "prefill": [replace(case, kind="prefill", batch=16, prompt=400)],
        "batch_window": _batch_window(case, (64,), (4,))[:1],
    }


def _batch_window(case: Case, windows: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Every pair, and `generate` at one depth."""
    one = replace(case, kind="batch_window")
    ours = [replace(one, window=window, batch=batch) for window in windows for batch in batches]
    return ours + [replace(one, window=None, batch=batch, at=(GENERATE_DEPTH,)) for batch in batches]


NAMES = tuple(full())
