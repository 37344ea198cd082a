"""Writes docs/cli.md from the parser's help, docs/trl.md from the table of TRL's options, and the lines about eviction
policies in that help from the table of policies.

`python docs/generate.py --check` fails if a page is not current.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from thoughtcache.cache.budgets import ALLOCATIONS
from thoughtcache.cache.eviction import EVICTION_POLICIES, EvictionPolicy, default_options
from thoughtcache.train.trl.options import NO_MEANING, REFUSED, REFUSED_BY_OTHER_NAME, WORKS
from thoughtcache_cli.arguments import build_parser
from thoughtcache_cli.options import eviction_help

ROOT = Path(__file__).parents[1]
EVICTION_HELP = "src/thoughtcache_cli/options/eviction_help.py"


def command_line_page() -> str:
    """The help of `thoughtcache` and of every command, at a fixed width."""
    os.environ["COLUMNS"] = "100"
    eviction_help.POLICIES, eviction_help.BUDGETS = policies(), allocations()
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# Command line", "", "Generated from `--help` by `make docs`.", ""]
    for title, page in (("thoughtcache", parser), *((f"thoughtcache {n}", p) for n, p in commands.choices.items())):
        parts += [f"## {title}", "", "```text", page.format_help().rstrip(), "```", ""]
    return "\n".join(parts)


def policies() -> tuple[tuple[str, str, str], ...]:
    """(name, what stays, settings with their defaults) of every eviction policy."""
    return tuple((name, policy.summary, settings(policy)) for name, policy in EVICTION_POLICIES.items())


def allocations() -> tuple[tuple[str, str, str], ...]:
    """(name, what is large, settings with their defaults) of every allocation of budgets."""
    return tuple(
        (name, one.summary, " ".join(f"{field.name}={field.default}" for field in fields(one)))  # type: ignore[arg-type]
        for name, one in ALLOCATIONS.items()
    )


def settings(policy: type[EvictionPolicy]) -> str:
    """The settings of a policy as they are written on the command line."""
    return " ".join(f"{key}={str(value).lower()}" for key, value in default_options(policy).items())


def eviction_module() -> str:
    """The source of `eviction_help.py`."""
    lines = [(ROOT / EVICTION_HELP).read_text().split("POLICIES")[0].rstrip("\n"), ""]
    for name, table in (("POLICIES", policies()), ("BUDGETS", allocations())):
        rows = [["    (", *(f'        "{text}",' for text in row), "    ),"] for row in table]
        lines += [f"{name} = (", *(line for row in rows for line in row), ")"]
    return "\n".join([*lines, ""])


OPTIONS_INTRODUCTION = """\
# TRL's options

`tc.ThoughtGRPOConfig` is `trl.GRPOConfig` (TRL 1.16, with all fields of transformers' `TrainingArguments`) and some
fields of its own. Generated from `train/trl/options.py` by `make docs`; a test fails when TRL adds an option.

A model's own `generation_config` is looked at as well (`train/trl/model_generation.py`): what would shape TRL's samples
and is not scored here (`suppress_tokens`, `no_repeat_ngram_size`, `min_p` and their kind) is refused when the trainer
is made. Temperature, `top_k`, `top_p` and the repetition penalty come from TRL's options, as in TRL.

## Refused
Some values of these options are refused when the configuration is made.
"""


def options_page() -> str:
    """What becomes of every option of TRL's."""
    parts = [OPTIONS_INTRODUCTION, "| option | refused values | why | use instead |", "|---|---|---|---|"]
    parts += [f"| `{n}` | {r.values} | {r.reason} | {r.remedy} |" for n, r in REFUSED.items()]
    for name, other in REFUSED_BY_OTHER_NAME.items():
        parts.append(f"| `{name}` | on | {f'see `{other}`' if other in REFUSED else other} | off |")
    parts += ["", "## Works", "| options | test |", "|---|---|"]
    parts += [f"| {_listed(names)} | {test} |" for test, names in WORKS.items()]
    parts += ["", "## Has no meaning here", "| options | why |", "|---|---|"]
    parts += [f"| {_listed(names)} | {reason} |" for reason, names in NO_MEANING.items()]
    return "\n".join([*parts, ""])


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


PAGES = {EVICTION_HELP: eviction_module, "docs/cli.md": command_line_page, "docs/trl.md": options_page}


def main() -> int:
    """Write the pages, or compare them."""
    stale = []
    for name, render in PAGES.items():
        page, text = ROOT / name, render()
        if "--check" not in sys.argv[1:]:
            page.write_text(text)
        elif not page.is_file() or page.read_text() != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run `make docs`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
