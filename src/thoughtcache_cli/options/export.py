"""Options of `thoughtcache export`."""

from __future__ import annotations

import argparse

EXAMPLES = """\
examples:
  thoughtcache export --adapter runs/mine/adapter --base-model Qwen/Qwen2.5-3B-Instruct --output-dir hub/mine
      a folder with a model card that has the settings and figures of runs/mine
  thoughtcache export --adapter ./adapter --run runs/mine --repo-id me/mine --license apache-2.0 --output-dir hub/mine
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    parser.add_argument("--adapter", required=True, help="folder of the trained adapter")
    parser.add_argument("--output-dir", required=True, help="the folder that is made; nothing is uploaded")
    parser.add_argument("--base-model", help="hub id of the base model (what the adapter names)")
    parser.add_argument("--run", help="folder of the run that made it (looked for around the adapter)")
    parser.add_argument("--repo-id", help="what it will be called on the hub (the name of the folder)")
    parser.add_argument("--license", help="licence of the adapter, by the hub's name; left open by default")
    parser.add_argument("--overwrite", action="store_true", help="replace an older export")
