"""Writes docs/cli.md from the parser's help. `python docs/generate.py --check` fails if the page is not current."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from thoughtcache_cli.arguments import build_parser

PAGE = Path(__file__).parent / "cli.md"


def render() -> str:
    """The page as text: the help of `thoughtcache` and of every command, at a fixed width."""
    os.environ["COLUMNS"] = "100"
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# Command line", "", "Generated from `--help` by `make docs`.", ""]
    for title, page in (("thoughtcache", parser), *((f"thoughtcache {n}", p) for n, p in commands.choices.items())):
        parts += [f"## {title}", "", "```text", page.format_help().rstrip(), "```", ""]
    return "\n".join(parts)


def main() -> int:
    """Write the page, or compare it."""
    text = render()
    if "--check" in sys.argv[1:]:
        current = PAGE.is_file() and PAGE.read_text() == text
        if not current:
            sys.stderr.write("docs/cli.md is not current; run `make docs`\n")
        return 0 if current else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
