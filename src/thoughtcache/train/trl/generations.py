"""The rollouts that the trainer keeps between sampling and scoring; TRL's batches carry only their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from thoughtcache.chains.chain import Trace
from thoughtcache.policy.handle import find_tuner
from thoughtcache.train.trl.weights_version import WeightsVersion

REFERENCE_ADAPTER = "ref"


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """The rollouts of one generation batch of this process.

    Attributes:
        rollouts: the records, rollouts or chains, in the order of the prompts; `rollout_index` of a batch points into
            them.
        sampled_by: the weights that sampled them.
    """

    rollouts: list[Trace]
    sampled_by: WeightsVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """The pass that is scored now.

    Attributes:
        rollouts: one record per row of the batch.
        on_policy: whether the weights are still those that sampled, so that recorded states are right.
        is_loss: whether this is the pass whose gap is logged.
    """

    rollouts: list[Trace]
    on_policy: bool
    is_loss: bool


def scores_reference(model: nn.Module) -> bool:
    """Whether TRL has switched the policy's adapter off, or its frozen copy on."""
    tuner = find_tuner(model)
    return not tuner.adapter_enabled or REFERENCE_ADAPTER in tuner.active_adapters


def check_same_tokens(rollouts: Sequence[Trace], completion_ids: Int[Tensor, "B T"]) -> None:
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
