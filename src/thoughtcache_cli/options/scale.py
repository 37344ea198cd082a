"""Options of `thoughtcache scale`."""

from __future__ import annotations

import argparse

from thoughtcache_cli.options.eval import answer_options, arm_options, question_options, run_options
from thoughtcache_cli.options.shared import integers, numbers

OUTPUT_DIR = "runs/scale"
EXAMPLES = """\
examples:
  thoughtcache scale --suite embedded --limit 200 --lengths 14,28,42,56 --cache full --cache window=32
      the packaged reasoner, a minute: accuracy over the most tokens of an answer, one line per cache
  thoughtcache scale --suite math500 --model ./model --base-length 1024 --cache full --cache window=512 \\
      --cache window=512,eviction=h2o --cache adapter=runs/mine/adapter,name=mine
      1 to 64 times 1024 tokens, sampled once at the longest and cut
  thoughtcache scale --suite math500 --model ./model --base-length 1024 --factors 1,2,4 --window 512 --sample-each
      seconds and memory of every length, each sampled by itself
  thoughtcache scale --operations 1,2,4,8,16 --limit 100 --cache full --cache window=16 --cache adapter=mine/adapter
      the task itself grows: long chains, for the packaged reasoner that solves them
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Enter the options."""
    group = parser.add_argument_group("lengths")
    group.add_argument("--lengths", type=integers, help="most tokens of an answer, with commas between them")
    group.add_argument("--factors", type=numbers, help="the same as multiples of --base-length (1,2,4,8,16,32,64)")
    group.add_argument("--base-length", type=int, help="tokens of factor 1, such as the length of the training")
    group.add_argument(
        "--sample-each",
        action="store_true",
        help="sample every length by itself, for its seconds and memory, instead of cutting the longest",
    )
    group.add_argument(
        "--operations",
        type=integers,
        help="operations per chain of the task long_chains instead, 1 to 16: traces of 12 N + 18 tokens",
    )
    question_options(parser)
    answer_options(parser, "16 for aime and amc, else 1")
    arm_options(parser)
    run_options(parser, OUTPUT_DIR)
