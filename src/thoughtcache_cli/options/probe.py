"""Options of `thoughtcache probe`."""

from __future__ import annotations

import argparse

from thoughtcache_cli.options.eviction import add_eviction_options
from thoughtcache_cli.options.shared import integers, names

EXAMPLES = """\
examples:
  thoughtcache probe --model ./model --adapter runs/mine/adapter --text notes.txt
      loss with its own states, with none, with those of another text, and of the base beside it
  thoughtcache probe --model ./model --adapter runs/mine/adapter --text notes.txt \\
      --what anatomy,attention-share,sinks --pieces 8
      what the states look like, what they give back of the attention that is lost, and where attention goes
  thoughtcache probe --model ./model --adapter runs/mine/adapter --what ages,families --distances 1,4,16,64
      does it forget by age or by how much it reads, and does it remember what it was not taught
  thoughtcache probe --model ./model --adapter runs/mine/adapter --what capacity --code-length 32 --distances 4
      how many of 1, 2, 4 to 32 facts does it remember at once, beside windows with its numbers as slots
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Enter the options."""
    group = parser.add_argument_group("model and text")
    group.add_argument("--model", required=True, help="folder or hub id of the base model")
    group.add_argument("--adapter", required=True, help="folder of the trained adapter")
    group.add_argument(
        "--what",
        type=names,
        help="probes between commas: state-use (default), anatomy, attention-share and sinks on pieces of a text; "
        "ages, families and capacity with passcodes",
    )
    group.add_argument("--text", help="file with running text, which is cut into pieces")
    group.add_argument("--dtype", help="of the base model: float32 (default), bfloat16 or float16")
    group = parser.add_argument_group("pieces of the text")
    group.add_argument("--prompt-tokens", type=int, help="first tokens of a piece, which stay in the cache (16)")
    group.add_argument("--length", type=int, help="tokens after them; those after the first eviction count (256)")
    group.add_argument("--pieces", type=int, help="most pieces (32)")
    group.add_argument(
        "--policies",
        type=names,
        help="attention-share, capacity: eviction policies of wider windows beside it (sliding)",
    )
    group.add_argument("--first-tokens", type=int, help="sinks: tokens of a piece that are the first ones (4)")
    group.add_argument("--tolerance", type=float, help="sinks: share of attention by which a head may move (0.1)")
    group = parser.add_argument_group("passcodes, of ages, families and capacity")
    group.add_argument("--codes", type=int, help="passcodes per figure (32)")
    group.add_argument("--code-length", type=int, help="words or digits of a passcode, as it was taught (4)")
    group.add_argument("--kind", help="words (default) or digits, as it was taught")
    group.add_argument("--distances", type=integers, help="evictions before the question (1,4,16)")
    group.add_argument("--before", type=integers, help="ages: text before a passcode, in evictions (0,4,16)")
    group = parser.add_argument_group("run")
    group.add_argument("--batch-size", type=int, help="pieces or passcodes that are scored at once (8)")
    group.add_argument("--output-dir", help="folder for probe.json and the pictures (runs/probe)")
    group.add_argument("--seed", type=int, help="of eviction policies that draw, and of passcodes (0)")
    group.add_argument("--overwrite", action="store_true", help="replace the results of an earlier probe")
    add_eviction_options(parser, "that of the adapter")
