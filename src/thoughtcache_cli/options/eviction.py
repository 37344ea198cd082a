"""Options that choose an eviction policy and its settings; the lines of its help are those of `eviction_help.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from thoughtcache_cli.options import eviction_help


def add_eviction_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--eviction`, `--eviction-option` and `--eviction-budgets`, with a line for every policy.

    Args:
        parser: parser of a command.
        default: the policy without the option, for the help. Budgets are even without theirs, or the adapter's.
    """
    width = max(len(name) for name, _, _ in eviction_help.POLICIES)
    lines = [
        f"{name:<{width}}  {summary}" + (f"; {options}" if options else "")
        for name, summary, options in eviction_help.POLICIES
    ]
    told = ["The prompt stays for ever. Of the thoughts stay, by policy, with its settings and their defaults:", *lines]
    group = parser.add_argument_group("eviction", "\n".join(told))
    group.add_argument("--eviction", metavar="NAME", help=f"policy, also one that a package registers ({default})")
    group.add_argument(
        "--eviction-option",
        dest="eviction_options",
        action=KeyValue,
        metavar="KEY=VALUE",
        help="a setting of the policy; may be given repeatedly",
    )
    known = "; ".join(f"{name} ({settings}): {summary}" for name, summary, settings in eviction_help.BUDGETS)
    scored = ", or ".join(
        f"{name}:scores=FILE ({source}; settings: {settings})" for name, source, settings in eviction_help.SCORED
    )
    group.add_argument(
        "--eviction-budgets",
        type=budgets,
        metavar="BUDGETS",
        help=f"thoughts of every layer, the window on average: integers between commas, or {known}; even: alike; those "
        f"of every kv head: slashes between layers, 12,4/6,10, or {scored}: heads of higher scores in a JSON file, a "
        "list of numbers per layer, keep more",
    )


class KeyValue(argparse.Action):
    """Collects `key=value` in a dict: true, false, integers and numbers as what they are, and other texts.

    Attributes:
        convert: makes a value of its text.
    """

    convert: Callable[[str], Any] = staticmethod(lambda text: value_of(text))

    def __call__(  # noqa: D102 - argparse calls it
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        key, equals, text = str(values).partition("=")
        if not key or not equals or not text:
            parser.error(f"argument {option_string}: {values!r} is no KEY=VALUE, such as sinks=2")
        found = dict(getattr(namespace, self.dest, {}))
        if key in found:
            parser.error(f"argument {option_string}: {key} is given twice; leave out one of them")
        setattr(namespace, self.dest, {**found, key: self.convert(text)})


def value_of(text: str) -> int | float | bool | str:
    """`true` and `false`, an integer, a number, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def budgets(text: str) -> str | list[int] | list[list[int]]:
    """Integers between commas, in which slashes separate layers if they are of heads, or the name of an allocation."""
    rows = [[part.strip() for part in row.split(",")] for row in text.split("/")]
    if not all(part.isdigit() for row in rows for part in row):
        return text
    sizes = [[int(part) for part in row] for row in rows]
    return sizes if "/" in text else sizes[0]


def modules(text: str) -> str | list[str]:
    """`all-linear`, or names of linear layers between commas."""
    return text if text == "all-linear" else text.split(",")
