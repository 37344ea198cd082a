"""Settings of training on recall episodes."""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.checks import at_least_one, one_of
from thoughtcache.train.loop_config import ReplayLoopConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig(ReplayLoopConfig):
    """Settings of `tc.teach_recall`: those of the loop (`ReplayLoopConfig`), and these.

    docs/lab-log.md has the history of the defaults. Episodes are short, so that `recompute` is off.

    Attributes:
        code_length: words or digits of a passcode, the longest.
        min_code_length: those of the shortest one; the logarithm of a step's length is drawn evenly. None: all alike.
        kind: "words" or "digits".
        min_evictions: shortest distance between a code and its question, in evictions.
        max_evictions: longest distance; the logarithm of a step's distance is drawn evenly.
        max_before: most text before a code, in evictions that it is enough for; the logarithm of a step's amount is
            drawn evenly. None: as much as `max_evictions`. With 0 every code comes first, and a memory learns to keep
            what comes first and nothing else.
        growth_steps: steps over which the longest distance grows from the shortest to `max_evictions`; 0 for none.
        trains: "memory" (what writes and reads the states alone) or "adapter" (the factors of the linears as well).
        write_cost: nats that a token adds to the loss when it is written to a memory in attention space, with strength
            one in all heads of all layers. None: 0.05 for such a memory; the paper's state has no price.

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    num_steps: int = 200
    learning_rate: float = 2e-2
    warmup_steps: int = 10
    recompute: bool = False
    code_length: int = 4
    min_code_length: int | None = None
    kind: str = "words"
    min_evictions: int = 1
    max_evictions: int = 8
    max_before: int | None = None
    growth_steps: int = 0
    trains: str = "memory"
    write_cost: float | None = None

    def __post_init__(self) -> None:
        ReplayLoopConfig.__post_init__(self)
        one_of("kind", self.kind, ("words", "digits"))
        one_of("trains", self.trains, ("memory", "adapter"))
        at_least_one(self, "code_length", "max_evictions")
        if not 0 <= self.min_evictions <= self.max_evictions:
            raise ValueError(
                f"min_evictions must be between 0 and max_evictions={self.max_evictions}, got {self.min_evictions}"
            )
        if self.min_code_length is not None and not 1 <= self.min_code_length <= self.code_length:
            raise ValueError(
                f"min_code_length must be between 1 and code_length={self.code_length}, got {self.min_code_length}"
            )
        if self.write_cost is not None and not 0 <= self.write_cost < float("inf"):
            raise ValueError(f"write_cost must be at least 0, got {self.write_cost}")
        for name in ("growth_steps", "max_before"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")

    def check_write_cost(self, memory: str) -> None:
        """Refuse a price that nobody pays.

        Raises:
            ValueError: if `write_cost` is given for another memory than that in attention space.
        """
        if self.write_cost and memory == "adapter":
            raise ValueError(
                f"write_cost={self.write_cost} changes nothing under memory={memory!r}; leave it out, or use "
                "memory='attention'"
            )

    @property
    def most_before(self) -> int:
        """`max_before`, resolved."""
        return self.max_evictions if self.max_before is None else self.max_before

    def longest(self, step: int) -> int:
        """The longest distance of a step, in evictions."""
        if step >= self.growth_steps:
            return self.max_evictions
        return self.min_evictions + round((self.max_evictions - self.min_evictions) * step / self.growth_steps)
