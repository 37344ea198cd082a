"""Options of `thoughtcache distill`."""

from __future__ import annotations

import argparse

from thoughtcache_cli.options.shared import adapter_options, folder_options, teacher_options

OUTPUT_DIR = "runs/distill"
EXAMPLES = """\
examples:
  thoughtcache distill --model ./model --dataset questions.jsonl --window 64
      h2o chooses what stays, a memory in attention space learns layer by layer what is lost, then both learn the base's
      next-token distributions, on the base's own answers
  thoughtcache distill --model ./model --dataset questions.jsonl --window 64 --preset paper
      the paper's state, by next-token distributions alone; --preset lora: what a window costs without any state
  thoughtcache distill --model ./model --text book.txt --window 64 --memory attention --recipe mine.toml
      stages of your own: tables [[stage]] with kind = "transfer", "recall" or "logits"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Enter the options."""
    group = parser.add_argument_group("model and texts")
    group.add_argument("--model", required=True, help="folder or hub id of a transformers model")
    group.add_argument("--adapter", help="folder of a trained adapter to start from, with its settings")
    group.add_argument("--dtype", help="of the base model: float32 (default), bfloat16 or float16")
    group.add_argument("--text", help="file with running text, which is cut into pieces")
    group.add_argument("--dataset", help="questions that the base answers, instead: file, folder or hub id")
    group.add_argument("--split", help="split of a hub data set (train)")
    group.add_argument("--prompt-column", help="column with the question (found by name)")
    group.add_argument("--instruction", help="text after each question")
    group.add_argument("--num-texts", type=int, help="texts at most, those held out included (192)")
    group.add_argument("--held-out", type=int, help="texts that are measured and never trained on (16)")
    group.add_argument("--prompt-tokens", type=int, help="with --text: first tokens of a piece, which stay (16)")
    group.add_argument("--max-new-tokens", type=int, help="thoughts of a text (384)")
    teacher_options(group)
    group.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="no windows with as many slots more beside it"
    )
    group = parser.add_argument_group("recipe")
    group.add_argument(
        "--recipe",
        help="logits, memory, or a TOML file with stages (memory for a memory in attention, else logits)",
    )
    adapter_options(parser, "hybrid")
    group = parser.add_argument_group("run")
    folder_options(group, OUTPUT_DIR, save_every=25, may_grow=False)
    group.add_argument("--force", action="store_true", help="sample even if the planner says that it does not fit")
