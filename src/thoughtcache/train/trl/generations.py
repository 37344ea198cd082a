"""The rollouts that the trainer keeps between sampling and scoring; TRL's batches carry only their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from thoughtcache.records import Rollout
from thoughtcache.train.trl.weights_version import WeightsVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """The rollouts of one generation batch of this process.

    Attributes:
        rollouts: the records, in the order of the prompts; `rollout_index` of a batch points into them.
        sampled_by: the weights that sampled them.
    """

    rollouts: list[Rollout]
    sampled_by: WeightsVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """The pass that is scored now.

    Attributes:
        rollouts: one record per row of the batch.
        on_policy: whether the weights are still those that sampled, so that recorded states are right.
        is_loss: whether this is the pass whose gap is logged.
    """

    rollouts: list[Rollout]
    on_policy: bool
    is_loss: bool


def check_same_tokens(rollouts: Sequence[Rollout], completion_ids: Int[Tensor, "B T"]) -> None:
    """Refuse to score rows other than the kept rollouts.

    Args:
        rollouts: one record per row.
        completion_ids: right-padded tokens of the batch.

    Raises:
        ValueError: if a row has other tokens, or the number of rows differs.
    """
    rows = completion_ids.tolist()
    same = len(rows) == len(rollouts) and all(
        row[: len(record.token_ids)] == record.token_ids for row, record in zip(rows, rollouts, strict=True)
    )
    if not same:
        raise ValueError("the completions of the batch are not the sampled rollouts; completions must not be edited")
