"""How a learning rate moves, by transformers' names.

Left out are schedules that need more than a name and a number of steps: `reduce_lr_on_plateau` and `greedy` (a metric
of an evaluation), `warmup_stable_decay` and `cosine_warmup_with_min_lr` (lengths of their own).
"""

from __future__ import annotations

from typing import Any

WITH_MINIMUM = "cosine_with_min_lr"
SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    WITH_MINIMUM,
)  # fmt: skip
MINIMUM_RATIO = 0.05
"""Where `cosine_with_min_lr` ends, as a share of the peak."""


def schedule(name: str, minimum_ratio: float = MINIMUM_RATIO) -> dict[str, Any]:
    """The fields of `TrainingArguments` for a schedule.

    Args:
        name: one of `SCHEDULERS`.
        minimum_ratio: where a cosine with a minimum ends, as a share of the peak.
    """
    settings: dict[str, Any] = {"lr_scheduler_type": name}
    return settings | ({"lr_scheduler_kwargs": {"min_lr_rate": minimum_ratio}} if name == WITH_MINIMUM else {})
