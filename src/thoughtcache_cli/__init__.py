"""The command `thoughtcache`. Kept outside the library so that `--help` does not import torch and peft."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from thoughtcache_cli.arguments import build_parser

RESUME_HINTS = {"train": "; run the same command with --resume to go on"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 2 wrong input (one line says what and the remedy), 130 interrupted."""
    parser = build_parser()
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports missing speed-ups while it is imported
    from thoughtcache_cli.commands import COMMANDS, USER_ERRORS, quieten_libraries

    quieten_libraries()
    try:
        COMMANDS[command](options)
    except KeyboardInterrupt:
        print("interrupted" + RESUME_HINTS.get(command, ""), file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"thoughtcache: error: {message}", file=sys.stderr)
        return 2
    return 0
