"""The reward of step folding (Accordion-Thinking): a right answer counts if the steps are whole and the chain ended.

It judges the whole trace, and every link gets its advantage. Accordion-Thinking takes the advantage without the
standard deviation of the group: `ThoughtGRPOConfig(scale_rewards="none")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from thoughtcache.chains.folding import StepFolding
from thoughtcache.sampler.draw.stop_sequences import count_sequence

Reward = Callable[..., Sequence[float | None]]


def folding_reward(reward: Reward, folding: StepFolding, stop_ids: Sequence[int]) -> Reward:
    """`reward` where a trace has as many closing as opening markers and came to its own end, else 0.

    Args:
        reward: a reward function as TRL takes it; it judges all completions, and its name stays.
        folding: the markers. With and without folding the rule is the same.
        stop_ids: tokens that end a sequence. A chain whose last token is another one did not end: its budget ran out,
            or its last step was none.

    Returns:
        A reward function with the name of `reward`. A row that `reward` does not judge (None) stays so, whatever its
        trace is.

    Raises:
        ValueError: if there are no stop tokens, without which nothing would ever be rewarded, or if the function is a
            coroutine function.
    """
    if not stop_ids:
        raise ValueError(
            "stop_ids is empty, so that no trace came to its end and every reward were 0; give those of the model"
        )
    if iscoroutinefunction(reward) or iscoroutinefunction(getattr(reward, "__call__", None)):  # noqa: B004 - not a test for a call
        raise ValueError(f"{reward!r} is a coroutine function, whose rewards are not there yet; pass a plain function")

    @wraps(reward)
    def counted(*, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        found = reward(completion_ids=completion_ids, **columns)
        return [
            value if value is None or (has_whole_steps(ids, folding) and ids[-1] in stop_ids) else 0.0
            for value, ids in zip(found, completion_ids, strict=True)
        ]

    return counted


def has_whole_steps(trace: Sequence[int], folding: StepFolding) -> bool:
    """Whether a trace has as many closing as opening markers."""
    return count_sequence(trace, folding.opening) == count_sequence(trace, folding.closing)
