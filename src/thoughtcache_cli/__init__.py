"""The command `thoughtcache`. Kept outside the library so that `--help` does not import torch and peft."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thoughtcache_cli.arguments import DEFAULT_OUTPUT_DIRS, build_parser, command_parsers
from thoughtcache_cli.effect import refuse_without_effect
from thoughtcache_cli.process.console import hide_harmless, hide_model_bars, loading_shown
from thoughtcache_cli.process.interrupts import INTERRUPTED, two_interrupts
from thoughtcache_cli.process.launch import is_first, several_processes
from thoughtcache_cli.process.next_steps import going_on, next_steps
from thoughtcache_cli.words import in_options

WRONG_INPUT = 2


def program(arguments: Sequence[str] | None = None) -> int:
    """Run a command in a process that ends with it: a second Ctrl-C leaves at once. Returns the exit code of `main`."""
    try:
        with two_interrupts():
            return main(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 2 wrong input (one line says what and the remedy), 130 interrupted.

    It may be called in a process that lives on, such as a notebook: signal handlers are those of the process, but while
    a trainer takes steps, when Ctrl-C stops between two of them.
    """
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = vars(parser.parse_args(given))
    command = options.pop("command")
    try:
        return _run(command, options, given)
    except KeyboardInterrupt:
        if is_first(os.environ):
            print("interrupted" + _resume_hint(command, options, given), file=sys.stderr)
        return INTERRUPTED


def _run(command: str, options: dict[str, Any], given: Sequence[str]) -> int:
    parser = command_parsers(build_parser())[command]
    refused = several_processes(os.environ, command)
    if refused is not None:
        return _fail(refused)
    spelled = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    try:
        refuse_without_effect(command, options, spelled)
    except ValueError as error:
        return _fail(str(error))
    hide_harmless()
    with loading_shown():
        from thoughtcache_cli.commands import COMMANDS, USER_ERRORS

        hide_model_bars()
    try:
        COMMANDS[command](dict(options))
    except USER_ERRORS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        return _fail(in_options(message, parser))
    if is_first(os.environ):
        for line in next_steps(command, options, given):
            print(line, flush=True)
    return 0


def _fail(message: str) -> int:
    """Say what is wrong, once however many processes there are."""
    if is_first(os.environ):
        print(f"thoughtcache: error: {message}", file=sys.stderr)
    return WRONG_INPUT


def _resume_hint(command: str, options: Mapping[str, Any], given: Sequence[str]) -> str:
    """Where the results so far are and what goes on with them, if there is anything to go on with."""
    if "output" in options:
        there, begun = options["output"], Path(f"{options['output']}.run.json").is_file()
    else:
        there = options.get("output_dir", DEFAULT_OUTPUT_DIRS.get(command))
        begun = there is not None and (Path(there) / "run.json").is_file()
    if not begun:
        return ""
    return f"; {there} has what is done, and this goes on:\n  {going_on(given, os.environ)}"
