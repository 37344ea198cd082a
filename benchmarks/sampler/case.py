"""What one child process measures: a frozen record that travels as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from thoughtcache.cache.schedule import evict_count

MODELS = ("tiny", "smollm2")
KINDS = (
    "gate", "positions", "generate_long", "generate_whole", "trl_turn", "absorption", "policies", "batching", "prefill",
    "batch_window", "compiled",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measurement. Each kind reads the fields that concern it; its file says how.

    Attributes:
        kind: the file that measures.
        model: "tiny" (the embedded reasoner) or "smollm2" (the folder given by `--model`).
        folder: of "smollm2".
        layers: only the first ones of "smollm2", where all would take hours; None for all.
        batch: sequences, or slots.
        window: resident thoughts; None for the full cache.
        tokens: thought tokens per sequence, or the cap of random lengths.
        prompt: prompt tokens.
        positions: "absolute" or "rolling".
        rank: r and G.
        rule: of the state.
        at: positions in a rollout at which to look.
        depth: tokens in the caches of `generate`, while ours is where `at` says; None for the same place.
        cycles: eviction cycles at a position that its speed is taken from.
        steps: tokens per look at another sampler.
        num_prompts: of continuous batching.
        mean_length: of random lengths.
        repeats: interleaved repetitions; the median counts.
        anchors: record the states, which grow with the length.
        compile: hand `compile=True` to `rollout`; only where True.
        judged: whether the sizes are those that the targets are meant for.
        threads: of PyTorch.
        device: of the model.
    """

    kind: str
    model: str = "tiny"
    folder: str | None = None
    layers: int | None = None
    batch: int = 8
    window: int | None = 256
    tokens: int = 1024
    prompt: int = 32
    positions: str = "absolute"
    rank: int = 32
    rule: str = "delta"
    at: tuple[int, ...] = ()
    depth: int | None = None
    cycles: int = 4
    steps: int = 16
    num_prompts: int = 96
    mean_length: int = 256
    repeats: int = 3
    anchors: bool = True
    compile: bool = False
    judged: bool = True
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is not known; use one of {', '.join(KINDS)}")
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r} is not known; use one of {', '.join(MODELS)}")

    @property
    def cycle(self) -> int:
        """Rounds from one eviction of a full window to the next; with the full cache a block of the usual length."""
        return evict_count(self.window, 0.25) if self.window is not None else 64

    @property
    def title(self) -> str:
        """Model and sizes in a few words."""
        window = f"window {self.window}" if self.window is not None else "full cache"
        if self.kind == "batch_window" and self.window is None:
            window = "generate"
        model = self.model if self.layers is None else f"{self.layers} layers of {self.model}"
        return f"{model}, batch {self.batch}, {window}"

    @property
    def label(self) -> str:
        """Of our curves."""
        return "full cache, our engine" if self.window is None else f"ours, window {self.window}"

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Case:
        """The case of a line."""
        fields: dict[str, Any] = json.loads(line)
        return cls(**{**fields, "at": tuple(fields["at"])})
