"""Options for a context that is reset at boundaries; tests/unit/test_thinking_options.py compares its lines."""

from __future__ import annotations

import argparse

from thoughtcache_cli.options.eviction import KeyValue

THINKING = (
    ("markovian", "the first and the last thoughts", "context=8192 keep_first=100 keep_last=3996 max_links=5"),
    (
        "folding",
        "the summaries between two markers",
        "opening=TEXT closing=TEXT keep=encoded separator=TEXT fold=true max_steps=6 step_tokens=6144 "
        "summary_tokens=1536 max_prompt_tokens=14336 unfold_tokens=16384",
    ),
)
"""(name, what is carried over a boundary, settings with their defaults)."""


class _KeyText(KeyValue):
    """Values stay texts: a marker may look like a number."""

    convert = staticmethod(str)


def add_thinking_options(parser: argparse.ArgumentParser, length: str) -> None:
    """Add `--thinking` and `--thinking-option`, with a line for every way.

    Args:
        parser: parser of a command.
        length: what its option for the length bounds, for the help.
    """
    width = max(len(name) for name, _, _ in THINKING)
    lines = [f"{name:<{width}}  {carried}; {options}" for name, carried, options in THINKING]
    told = [
        "The context is reset at boundaries, and what is carried is encoded again, or with keep=written stays as it "
        f"was written (docs/folding.md). {length}",
        "What is carried, by name, with its settings and their defaults:",
        *lines,
    ]
    group = parser.add_argument_group("thinking in links", "\n".join(told))
    group.add_argument("--thinking", metavar="NAME", help="markovian or folding; without it there is one context")
    group.add_argument(
        "--thinking-option",
        dest="thinking_options",
        action=_KeyText,
        metavar="KEY=VALUE",
        help="a setting of it; may be given repeatedly",
    )
