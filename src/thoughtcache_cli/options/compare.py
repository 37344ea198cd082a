"""Options of `thoughtcache compare-eviction`."""

from __future__ import annotations

import argparse

from thoughtcache_cli.options import eviction_help
from thoughtcache_cli.options.shared import integers, names

OUTPUT_DIR = "runs/compare-eviction"
EXAMPLES = """\
examples:
  thoughtcache compare-eviction --model ./model --text book.txt --window 32,64,128
      every policy under three windows, on pieces of a text
  thoughtcache compare-eviction --model ./model --dataset questions.jsonl --window 64 --eviction sliding,h2o,snapkv
      three policies on the base's own answers
  thoughtcache compare-eviction --model ./model --text book.txt --window 64 --extra-tokens 16
      what 16 slots more give back of what a window of 64 loses: the bar for a memory of as many numbers
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Enter the options."""
    group = parser.add_argument_group("model and texts")
    group.add_argument("--model", required=True, help="folder or hub id of a transformers model")
    group.add_argument("--dtype", help="of the base model: float32 (default), bfloat16 or float16")
    group.add_argument("--text", help="file with running text, which is cut into pieces")
    group.add_argument("--dataset", help="questions that the base answers, instead: file, folder or hub id")
    group.add_argument("--tokens", help='token ids, instead: JSON lines with "prompt" and "thought"')
    group.add_argument("--split", help="split of a hub data set (train)")
    group.add_argument("--prompt-column", help="column with the question (found by name)")
    group.add_argument("--instruction", help="text after each question")
    group.add_argument("--num-texts", type=int, help="texts at most (16)")
    group.add_argument("--prompt-tokens", type=int, help="with --text: first tokens of a piece, which stay (16)")
    group.add_argument("--length", type=int, help="thoughts of every text; shorter answers are left out (384)")
    known = ", ".join(name for name, _, _ in eviction_help.POLICIES)
    group = parser.add_argument_group("caches")
    group.add_argument("--window", type=integers, help="resident thoughts; several between commas (64)")
    group.add_argument("--eviction", type=names, help=f"policies between commas, with their defaults ({known})")
    group.add_argument("--extra-tokens", type=int, help="slots beside the window, worth a state's numbers (0)")
    group.add_argument("--evict-fraction", type=float, help="share of the slots that leaves when they are full (0.25)")
    group.add_argument("--positions", help="absolute (default), or rolling: inside the window")
    group = parser.add_argument_group("measurement")
    group.add_argument("--share-texts", type=int, help="first texts, whose attention outputs are compared (8)")
    group.add_argument("--batch-size", type=int, help="texts that are decoded at once; the first batch is timed (8)")
    group.add_argument("--repeats", type=int, help="timed passes of a policy, each behind one of sliding (2)")
    group = parser.add_argument_group("run")
    group.add_argument("--output-dir", help=f"run folder ({OUTPUT_DIR})")
    group.add_argument("--seed", type=int, help="of policies that draw, and of answers (0)")
    group.add_argument("--resume", action="store_true", help="go on where the run in this folder stopped")
    group.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds another run")
