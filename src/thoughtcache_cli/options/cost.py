"""Options of `thoughtcache cost`."""

from __future__ import annotations

import argparse

from thoughtcache_cli.options.shared import adapter_options, base_options, learner_options, question_options

OUTPUT_DIR = "runs/cost"
EXAMPLES = """\
examples:
  thoughtcache cost --model ./model --dataset questions.jsonl --window 256 --max-new-tokens 1024
      where the seconds of a step go, for LoRA with full cache, LoRA with window, and the adapter
  thoughtcache cost --model ./model --dataset questions.jsonl --window 256 --memory attention --eviction h2o
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Enter the options."""
    group = parser.add_argument_group("model and data")
    group.add_argument("--model", required=True, help="folder or hub id of a transformers model")
    group.add_argument("--dataset", required=True, help="JSONL, JSON, CSV, TSV or parquet file, folder, or hub id")
    question_options(group)
    group.add_argument("--adapter", help="folder of a trained adapter, whose settings are timed")
    base_options(group, "float32 (default), bfloat16 or float16")
    adapter_options(parser)
    learner_options(parser, reuse_field="reuse_rollout")
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=int, default=2, help="steps of each arm that count, after one that does not (2)")
    group.add_argument("--group-size", type=int, help="completions per question (8)")
    group.add_argument("--grpo-batch-size", type=int, help="completions per step and process (8)")
    group.add_argument("--output-dir", help=f"folder for the results ({OUTPUT_DIR})")
    group.add_argument("--seed", type=int, help="seed of everything (0)")
    group.add_argument("--allow-no-eviction", action="store_true", help="time even if the window holds every thought")
    group.add_argument("--force", action="store_true", help="time even if the planner says that it does not fit")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier result")
