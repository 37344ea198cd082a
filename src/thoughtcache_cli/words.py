"""Errors of the library in the words of the command line: `grpo_batch_size=6` is `--grpo-batch-size 6` there."""

from __future__ import annotations

import argparse
import re

ALIASES = {
    "max_completion_length": "max_new_tokens",
    "num_generations": "group_size",
    "per_device_train_batch_size": "grpo_batch_size",
}
"""TRL's names of some options, each with the name that the option has here."""
_VALUE = r"(?:'[^']*'|\"[^\"]*\"|\.\.\.|[\w+.-]*\w)"


def in_options(message: str, parser: argparse.ArgumentParser) -> str:
    """The message with the names and values of settings written as options of a command.

    Left as they are: names inside quotes, paths and other words, and settings without an option.

    Args:
        message: message of an error.
        parser: parser of the command.
    """
    options = {action.dest: action for action in parser._actions if action.option_strings}
    aliases = {alias: options[name] for alias, name in ALIASES.items() if name in options}
    for name, action in {**options, **aliases}.items():
        option = next(text for text in action.option_strings if text.startswith("--"))
        start = rf"(?<![\w/.'\"-]){name}"
        if isinstance(action, argparse._StoreTrueAction | argparse._StoreFalseAction):
            present, absent = str(action.const), str(not action.const)
            message = re.sub(rf"\bset {name}={absent}\b", f"leave out {option}", message)
            message = re.sub(rf"{start}={present}\b", option, message)
            message = re.sub(rf"{start}={absent}\b", f"no {option}", message)
        else:
            message = re.sub(rf"{start}=({_VALUE})", lambda found: f"{option} {_value(found.group(1))}", message)  # noqa: B023
        message = re.sub(rf"{start}(?= must be\b| is -?\d)", option, message)
        if "_" in name:
            message = re.sub(rf"{start}(?![\w/(=-]|\.\w)", option, message)
    message = re.sub(r"\bThoughtConfig\((--[^()]*)\)", r"\1", message)
    return re.sub(r"\bNone\b", "none", message)


def _value(text: str) -> str:
    return text.strip("'\"")
