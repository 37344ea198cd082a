"""The command `thoughtcache`. Kept outside the library so that `--help` does not import torch and peft."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thoughtcache_cli.arguments import DEFAULT_OUTPUT_DIRS, build_parser, command_parsers
from thoughtcache_cli.effect import refuse_without_effect
from thoughtcache_cli.process.interrupts import INTERRUPTED, two_interrupts
from thoughtcache_cli.process.launch import is_first, several_processes
from thoughtcache_cli.words import in_options

WRONG_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 2 wrong input (one line says what and the remedy), 130 interrupted."""
    parser = build_parser()
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    with two_interrupts():
        try:
            return _run(command, options)
        except KeyboardInterrupt:
            print("interrupted" + _resume_hint(command, options), file=sys.stderr)
            return INTERRUPTED


def _run(command: str, options: dict[str, Any]) -> int:
    parser = command_parsers(build_parser())[command]
    refused = several_processes(os.environ, command)
    if refused is not None:
        return _fail(refused)
    spelled = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    try:
        refuse_without_effect(command, options, spelled)
    except ValueError as error:
        return _fail(str(error))
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports missing speed-ups while it is imported
    from thoughtcache_cli.commands import COMMANDS, USER_ERRORS, quieten_libraries

    quieten_libraries()
    try:
        COMMANDS[command](options)
    except USER_ERRORS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        return _fail(in_options(message, parser))
    return 0


def _fail(message: str) -> int:
    """Say what is wrong, once however many processes there are."""
    if is_first(os.environ):
        print(f"thoughtcache: error: {message}", file=sys.stderr)
    return WRONG_INPUT


def _resume_hint(command: str, options: Mapping[str, Any]) -> str:
    """A hint how to go on, if there is anything to go on with."""
    folder = options.get("output_dir", DEFAULT_OUTPUT_DIRS.get(command))
    begun = folder is not None and (Path(folder) / "run.json").is_file()
    begun_file = "output" in options and Path(f"{options['output']}.run.json").is_file()
    if not (begun or begun_file):
        return ""
    return "; run the same command with --resume to go on"
