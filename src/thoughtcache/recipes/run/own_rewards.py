"""Reward functions of the user: found by `package.module:function`, and tried before anything is trained.

They are called as TRL calls them: `reward(prompts=, completions=, completion_ids=, <columns of the data set>,
trainer_state=, log_extra=, log_metric=)`, by keyword, and return a number, or None for no judgement, per completion.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerState

from thoughtcache.recipes.run.reward_guard import FAULTS, Reward, guarded

NUM_TRIED = 2
"""Completions that a function is tried on."""


def load_reward(name: str) -> Reward:
    """The function that `package.module:function` names, from the working directory or an installed package.

    It is guarded (`reward_guard.py`). The working directory stays on Python's path, as under `python -m`.

    Raises:
        ValueError: if there is no such module or function, or if it is none.
    """
    place, function = _parts(name)
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
    return guarded(name, found)


def reward_digest(name: str, reward: Reward) -> str:
    """A digest of the files of a loaded reward: the module that was named, and the one that defines the function.

    Not covered: what these import.
    """
    function = inspect.unwrap(reward)
    while isinstance(function, partial):
        function = function.func
    modules = [sys.modules[_parts(name)[0]], sys.modules.get(getattr(function, "__module__", ""))]
    files = {file for module in modules if (file := getattr(module, "__file__", None))}
    digest = hashlib.blake2b(digest_size=16)
    for content in sorted(Path(file).read_bytes() for file in files):
        digest.update(content)
    return digest.hexdigest()


def _parts(name: str) -> tuple[str, str]:
    """(module, function) of a name.

    Raises:
        ValueError: if it has no such parts, or has the path of a file in the place of the module.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise ValueError(f"reward={name!r} names no function; write package.module:function, such as rewards:short")
    parts = [part for part in re.split(r"[/\\.:]+", place.removesuffix(".py")) if part]
    if place.endswith(".py") or ".".join(parts) != place:
        elsewhere = place.startswith(("/", "..")) or ":" in place
        dotted = parts[-1] if elsewhere and parts else ".".join(parts)
        raise ValueError(
            f"reward={name!r} is the path of a file, not the name of a module as Python sees it from the "
            f"working directory; write {dotted or 'rewards'}:{function}"
        )
    return place, function


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
    except (*FAULTS, SyntaxError) as error:
        raise ValueError(
            f"reward={name!r}: {place} cannot be imported ({type(error).__name__}: {error}); repair it"
        ) from error


def try_reward(
    name: str, reward: Reward, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Call a reward as TRL will, on made-up completions to the first questions.

    Args:
        name: what it is called in errors.
        reward: the guarded function; a coroutine function is awaited, as TRL does.
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
        if inspect.isawaitable(found):
            asyncio.run(_awaited(found))
    except ValueError as error:
        raise ValueError(
            f"{error}; it was tried on {len(tried)} completions, of which the first was {texts[0]!r}"
        ) from error


async def _awaited(found: Any) -> Any:
    return await found
