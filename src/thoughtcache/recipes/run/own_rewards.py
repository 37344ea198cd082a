"""Reward functions of the user: found by `package.module:function`, and tried before anything is trained.

They are called as TRL calls them: `reward(prompts=, completions=, completion_ids=, <columns of the data set>,
trainer_state=, log_extra=, log_metric=)`, by keyword, and return a number, or None for no judgement, per completion.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerState

Reward = Callable[..., Any]
NUM_TRIED = 2
"""Completions that a function is tried on."""
_FAULTS = (ArithmeticError, AttributeError, LookupError, NameError, OSError, RuntimeError, TypeError, ValueError)
"""What a function of somebody else is likely to raise; anything else keeps its traceback."""


def load_reward(name: str) -> Reward:
    """The function that `package.module:function` names, from the working directory or an installed package.

    The working directory stays on Python's path, as under `python -m`.

    Raises:
        ValueError: if there is no such module or function, or if it is none.
    """
    place, colon, function = name.partition(":")
    if not colon or not place or not function:
        raise ValueError(f"reward={name!r} names no function; write package.module:function, such as rewards:short")
    module = _module(place, name)
    found: Any = module
    for part in function.split("."):
        if part not in dir(found):
            known = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
            raise ValueError(
                f"reward={name!r}: the module {place} ({module.__file__}) has no {function}; "
                f"it has {known or 'no functions'}"
            )
        found = getattr(found, part)
    if not callable(found) or inspect.isclass(found):
        raise ValueError(
            f"reward={name!r} is a {'class' if inspect.isclass(found) else type(found).__name__}, not a function; name "
            "a function as TRL takes it"
        )
    reward: Reward = found
    return reward


def _module(place: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise ValueError(
                f"reward={name!r}: there is no module {error.name}, neither in {here} nor installed; run the command "
                f"where {place.split('.')[0]}.py or its package lies, or correct the name"
            ) from error
        raise ValueError(
            f"reward={name!r}: {place} needs a module that is not installed ({error}); install it"
        ) from error
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"reward={name!r}: {place} cannot be imported ({error}); repair it") from error


def try_reward(
    name: str, reward: Reward, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Call a reward as TRL will, on made-up completions to the first questions.

    Args:
        name: what it is called in errors.
        reward: the function; a coroutine function is awaited, as TRL does.
        rows: rows of the data set that TRL sees, at least one; "prompt" of each, and other columns.
        tokenizer: tokenizer of the model.

    Raises:
        ValueError: if it does not take the arguments, fails, or does not return a finite number or None for each.
    """
    tried = rows[:NUM_TRIED]
    texts = [f"The answer is {row.get('answer')}." for row in tried]
    chats = not isinstance(tried[0]["prompt"], str)
    columns = {key: [row[key] for row in tried] for key in tried[0] if key != "prompt"}
    arguments: dict[str, Any] = {
        "prompts": [row["prompt"] for row in tried],
        "completions": [[{"role": "assistant", "content": text}] for text in texts] if chats else texts,
        "completion_ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        **columns,
        "trainer_state": TrainerState(),
        "log_extra": lambda column, values: None,
        "log_metric": lambda metric, value: None,
    }
    try:
        inspect.signature(reward).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"the reward {name} does not take what TRL passes ({error}): {', '.join(arguments)}, by keyword; end its "
            "parameters with **kwargs"
        ) from error
    try:
        found = reward(**arguments)
        found = asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
    except _FAULTS as error:
        raise ValueError(
            f"the reward {name} failed on the {len(tried)} completions that it was tried on "
            f"({type(error).__name__}: {error}); the first was {texts[0]!r}"
        ) from error
    if not isinstance(found, list | tuple):
        raise ValueError(
            f"the reward {name} returned a {type(found).__name__} ({found!r:.80}); return a list with a number, or "
            "None, for each completion"
        )
    if len(found) != len(tried):
        raise ValueError(
            f"the reward {name} returned {len(found)} values for {len(tried)} completions; return one for each"
        )
    for value in found:
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(
                f"the reward {name} returned {value!r:.80}, a {type(value).__name__}; allowed: finite numbers, and "
                "None for no judgement"
            )


async def _awaited(found: Any) -> Any:
    return await found
