"""A guard around a reward of the user: what it returns is looked at in every step, not in its trial alone."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from thoughtcache.recipes.run.reward_names import function_name

Reward = Callable[..., Any]
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What code of somebody else is likely to raise; anything else keeps its traceback."""
LARGEST = torch.finfo(torch.float32).max
"""TRL keeps rewards in single precision; what is larger would be infinite there."""


def guarded(name: str, reward: Reward) -> Reward:
    """The reward with its errors under its name, and its values checked; a coroutine function stays one.

    Args:
        name: `package.module:function`; TRL logs the reward under the function's name, whatever decorators call it.
        reward: the function as TRL takes it.
    """
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None)):  # noqa: B004 - not a test for a call

        @wraps(reward)
        async def awaited(*, completions: Any, **columns: Any) -> list[float | None]:
            try:
                found = await reward(completions=completions, **columns)
            except FAULTS as error:
                raise _failure(name, error) from error
            return checked_values(name, found, len(completions))

        awaited.__name__ = function_name(name)
        return awaited

    @wraps(reward)
    def called(*, completions: Any, **columns: Any) -> list[float | None]:
        try:
            found = reward(completions=completions, **columns)
        except FAULTS as error:
            raise _failure(name, error) from error
        return checked_values(name, found, len(completions))

    called.__name__ = function_name(name)
    return called


def check_folded(rewards: Mapping[str, Reward]) -> None:
    """Refuse guarded rewards that folding cannot wrap, before anything is loaded.

    Raises:
        ValueError: if one is a coroutine function.
    """
    for name, reward in rewards.items():
        if inspect.iscoroutinefunction(reward):
            raise ValueError(
                f"the reward {name} is a coroutine function, and thinking=folding needs its values at once; write a "
                "plain function (def instead of async def)"
            )


def checked_values(name: str, found: Any, count: int) -> list[float | None]:
    """What a reward returned, as floats.

    Args:
        name: what it is called in errors.
        found: what it returned.
        count: completions that it was asked about.

    Raises:
        ValueError: if it is not a list with a finite number, or None, for each completion.
    """
    if not isinstance(found, list | tuple):
        raise ValueError(
            f"the reward {name} returned a {type(found).__name__} ({found!r:.80}); return a list with a number, or "
            "None, for each completion"
        )
    if len(found) != count:
        raise ValueError(f"the reward {name} returned {len(found)} values for {count} completions; return one for each")
    for value in found:
        if value is not None and not _is_finite(value):
            raise ValueError(
                f"the reward {name} returned {value!r:.80}, a {type(value).__name__}; allowed: finite numbers, and "
                "None for no judgement"
            )
    return [None if value is None else float(value) for value in found]


def _is_finite(value: Any) -> bool:
    size: Any = abs(value) if isinstance(value, Real) else LARGEST * 2  # an integer may be beyond every float
    return bool(size <= LARGEST)


def _failure(name: str, error: Exception) -> ValueError:
    """An error that says where in the reward it arose; the first frame is that of the guard."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]
    where = "".join(f" in {Path(frame.filename).name}, line {frame.lineno}" for frame in frames)
    return ValueError(f"the reward {name} failed{where} ({type(error).__name__}: {error})")
