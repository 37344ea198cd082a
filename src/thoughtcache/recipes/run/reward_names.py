"""What rewards of the user may be called, and their weights; known before any module is imported."""

from __future__ import annotations

import math
from collections.abc import Sequence

DEFAULT_REWARD = "thoughtcache.train.rewards:math_correctness"
"""The reward for right answers, which compares with references."""


def function_name(name: str) -> str:
    """The last part of `package.module:function`, under which TRL logs a reward."""
    return name.rpartition(":")[2].rpartition(".")[2]


def check_reward_names(rewards: Sequence[str] | None, weights: Sequence[float] | None) -> None:
    """Refuse rewards that cannot be told apart in the log, and weights that are none.

    Args:
        rewards: each as `package.module:function`; None for the default.
        weights: one for each reward; None weighs all alike.

    Raises:
        ValueError: if two rewards have one function name, if there is not one weight for each, or if a weight is not
            finite.
    """
    rewards = rewards or ()
    if weights is not None and len(weights) != len(rewards):
        raise ValueError(
            f"reward_weight={weights} is one weight for each reward, of which there are {len(rewards)}; give as many "
            "of both"
        )
    for weight in weights or ():
        if not math.isfinite(weight):
            raise ValueError(f"reward_weight={weight} is no finite number, and every advantage would be nan; give one")
    seen: dict[str, str] = {}
    for name in rewards:
        other = seen.get(function_name(name))
        seen[function_name(name)] = name
        if other == name:
            raise ValueError(f"reward={name!r} is given twice; give it once, with the sum of its weights")
        if other is not None:
            raise ValueError(
                f"reward={other!r} and {name!r} are logged under one name, {function_name(name)}; give one of them "
                "another name in its module, such as second_score = score"
            )
