"""Options of `thoughtcache perplexity`."""

from __future__ import annotations

import argparse

from thoughtcache_cli.options.shared import cache_options

OUTPUT_DIR = "runs/perplexity"
EXAMPLES = """\
examples:
  thoughtcache perplexity --model ./model --text book.txt --window 128
      the base under a window: perplexity, and how far it is from the full cache, by position and by age
  thoughtcache perplexity --model ./model --adapter runs/mine/adapter --text book.txt
      an adapter under its own cache
  thoughtcache perplexity --model ./model --tokens texts.jsonl --window 64 --eviction h2o
      token ids, each text as long as it is
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Enter the options."""
    group = parser.add_argument_group("model and texts")
    group.add_argument("--model", required=True, help="folder or hub id of a transformers model")
    group.add_argument("--adapter", help="folder of a trained adapter; without one the base is measured")
    group.add_argument("--dtype", help="of the base model: float32 (default), bfloat16 or float16")
    group.add_argument("--text", help="file with running text, which is cut into pieces")
    group.add_argument("--tokens", help='token ids, instead: JSON lines with "prompt" and "thought"')
    group.add_argument("--num-texts", type=int, help="texts at most (16)")
    group.add_argument("--prompt-tokens", type=int, help="with --text: first tokens of a piece, which stay (16)")
    group.add_argument("--length", type=int, help="predicted tokens of a text (512 with --text, whole with --tokens)")
    cache_options(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--batch-size", type=int, help="texts that a policy that chooses reads at once (8)")
    group.add_argument("--seed", type=int, help="of policies that draw (0)")
    group.add_argument("--output-dir", help=f"folder for the results ({OUTPUT_DIR})")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier result")
