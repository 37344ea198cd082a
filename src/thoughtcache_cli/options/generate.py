"""Options of `thoughtcache generate`."""

from __future__ import annotations

import argparse

from thoughtcache_cli.options.eviction import add_eviction_options
from thoughtcache_cli.options.shared import count_or_none
from thoughtcache_cli.options.thinking import add_thinking_options

EXAMPLES = """\
examples:
  thoughtcache generate --model ./model --adapter runs/mine/adapter "What is 12 * 13?"
  thoughtcache generate --model ./model --adapter runs/mine/adapter --temperature 0.8 --top-p 0.95 \\
      --seed 3 --stop "\\boxed" "What is 12 * 13?"
  thoughtcache generate --model ./model --adapter runs/mine/adapter --questions questions.jsonl --output answers.jsonl
  thoughtcache generate --model ./model --adapter runs/mine/adapter --chat --system "Answer in one sentence."
  thoughtcache generate --model ./model --adapter runs/mine/adapter --max-new-tokens 4096 --thinking markovian \\
      --thinking-option context=1024 --thinking-option keep_last=412 --thinking-option max_links=7 "What is 12 * 13?"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    parser.add_argument("prompt", nargs="?", help="the question")
    parser.add_argument("--model", required=True, help="folder or hub id of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the trained adapter")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    group = parser.add_argument_group("what is asked, instead of one question")
    group.add_argument("--messages", metavar="FILE", help="JSON file of chat messages, the last one the user's")
    group.add_argument(
        "--chat", action="store_true", help="a line of the input is a turn, until its end; after --messages, if given"
    )
    group.add_argument("--questions", metavar="FILE", help="JSONL, JSON, CSV, TSV or parquet file of questions")
    group.add_argument("--output", metavar="FILE", help="JSONL file of the answers to --questions, a line each")
    group.add_argument("--prompt-column", help="column with the question (found by name)")
    group.add_argument("--limit", type=count_or_none, help='use the first rows only; "none" for all')
    group.add_argument("--bad-rows", help="refuse (default) or drop rows without a usable question")
    group.add_argument("--batch-size", type=int, help="answers sampled at once (8)")
    group.add_argument("--resume", action="store_true", help="answer what is missing in --output")
    group.add_argument("--overwrite", action="store_true", help="replace an --output that is there")
    group = parser.add_argument_group("prompt")
    group.add_argument("--instruction", help='text after the last message (that of training); "" for none')
    group.add_argument("--system", help="system message, unless the messages begin with one")
    group = parser.add_argument_group("length")
    group.add_argument("--max-new-tokens", type=int, default=512, help="length of the thoughts (512)")
    group.add_argument("--min-new-tokens", type=int, help="the first so many tokens do not end the answer (0)")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end with this text; may be given repeatedly")
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, default=0.0, help="0 decodes greedily (0)")
    group.add_argument("--top-k", type=int, help="draw from so many tokens, the most likely ones; 0 for all (0)")
    group.add_argument("--top-p", type=float, help="draw from the most likely tokens of this probability together (1)")
    group.add_argument("--min-p", type=float, help="draw from tokens so likely relative to the most likely one (0)")
    group.add_argument("--repetition-penalty", type=float, help="above 1 discourages tokens that were there before (1)")
    group.add_argument("--seed", type=int, help="of the sampling (0)")
    add_eviction_options(parser, "that of the adapter")
    add_thinking_options(parser, "--max-new-tokens bounds all links together.")
