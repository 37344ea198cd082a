"""Settings of attention transfer."""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.train.loop_config import LoopConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig(LoopConfig):
    """Settings of `tc.transfer_attention`: those of the loop (`LoopConfig`), with defaults of its own.

    docs/lab-log.md has the history of the defaults.

    Attributes:
        learning_rate: peak, as LoLCATs has it (arXiv 2410.10254).

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    num_steps: int = 200
    learning_rate: float = 1e-2
    warmup_steps: int = 10
