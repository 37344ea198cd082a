"""Options of `thoughtcache train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from thoughtcache_cli.options.shared import (
    adapter_options,
    base_options,
    folder_options,
    integer_or_word,
    learner_options,
    question_options,
    teacher_options,
)
from thoughtcache_cli.options.thinking import add_thinking_options

OUTPUT_DIR = "runs/train"
EXAMPLES = """\
examples:
  thoughtcache train
      the embedded job: a tiny reasoner, about ten minutes on two cores; with --quick a look at it in about one
  thoughtcache train --model Qwen/Qwen2.5-3B --dataset BytedTsinghua-SIA/DAPO-Math-17k --window 1024
  thoughtcache train --model ./model --dataset questions.jsonl --window 128 --max-new-tokens 512 \\
      --distill-steps 50 --grpo-steps 20 --output-dir runs/mine
"""


class _BothSteps(argparse.Action):
    """Sets the steps of distillation and of GRPO, where neither has an option of its own."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        for name in ("distill_steps", "grpo_steps"):
            if not hasattr(namespace, name):
                setattr(namespace, name, values)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    group = parser.add_argument_group("model and data")
    group.add_argument("--model", help="folder or hub id of a transformers model; leave out for the embedded job")
    group.add_argument("--dataset", help="JSONL, JSON, CSV, TSV or parquet file, folder, or hub id")
    question_options(group)
    group.add_argument(
        "--max-prompt-tokens", type=int, help="leave out questions with longer prompts, and say how many; none is cut"
    )
    group.add_argument("--adapter", help="folder of a trained adapter to start from, with its settings")
    base_options(group, "float32 (default), bfloat16 or float16")
    group.add_argument("--task", help="embedded task: chains (default) or multiplication")
    adapter_options(parser)
    learner_options(parser, reuse_field="reuse_rollout")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--steps",
        type=int,
        action=_BothSteps,
        help="steps of distillation, and as many of GRPO; the options below win (100)",
    )
    group.add_argument("--distill-steps", type=int, help="steps of cache distillation, 0 to skip (100)")
    group.add_argument("--distill-batch-size", type=int, help="sequences per distillation step (8)")
    group.add_argument(
        "--distill-micro-batch-size",
        type=integer_or_word,
        help="of them, sequences in the learner at once: less memory, the same step; left to the planner (auto)",
    )
    teacher_options(group)
    group.add_argument("--distill-learning-rate", type=float, help="peak learning rate of distillation (1e-3)")
    group.add_argument(
        "--distill-memory-learning-rate",
        type=float,
        help="the same for what writes and reads the states",
    )
    group.add_argument("--grpo-steps", type=int, help="steps of GRPO, 0 to skip (100)")
    group.add_argument("--group-size", type=int, help="completions per question (8)")
    group.add_argument("--grpo-batch-size", type=int, help="completions per step and process (8)")
    group.add_argument(
        "--gradient-accumulation",
        type=int,
        help="micro-batches that GRPO's learner takes them in, also below a group: less memory, the same step (1)",
    )
    group.add_argument("--grpo-learning-rate", type=float, help="learning rate of GRPO (1e-5)")
    group.add_argument(
        "--grpo-memory-learning-rate",
        type=float,
        help="the same for what writes and reads the states",
    )
    group.add_argument("--temperature", type=float, help="of what GRPO and the teacher of distillation sample (1.0)")
    group.add_argument(
        "--reward",
        action="append",
        metavar="MODULE:FUNCTION",
        help="a reward of your own as TRL takes it, found from the working directory; may be given repeatedly; by "
        "default right answers count 1",
    )
    group.add_argument(
        "--reward-weight", type=float, action="append", metavar="WEIGHT", help="one for each --reward, in their order"
    )
    group.add_argument(
        "--learning-rate-scheduler",
        help="how both learning rates move, by transformers' name: linear, cosine, constant and others; by default a "
        "cosine down to 5 %% in distillation, and a line down to 0 in GRPO",
    )
    add_thinking_options(parser, "GRPO alone does so; --max-new-tokens bounds all links together.")
    group = parser.add_argument_group("run")
    group.add_argument("--profile-memory", action="store_true", help="leave a timeline of the memory in use by GRPO")
    group.add_argument(
        "--held-out",
        type=int,
        help="questions that are asked before and after and never trained on; by default a tenth, at most 32; 0: none",
    )
    group.add_argument(
        "--baseline",
        action="store_true",
        help="train LoRA under the same window, without a memory, beside it in OUTPUT_DIR/baseline, for the table at "
        "the end; twice the time",
    )
    group.add_argument(
        "--report-to", help="where both phases report their logs: none (default), tensorboard, trackio, wandb or mlflow"
    )
    group.add_argument(
        "--log-completions",
        type=int,
        metavar="N",
        help="show N completions of every step of GRPO, drawn at random; all are in grpo/rollouts.jsonl (0)",
    )
    group.add_argument("--evaluation-size", type=int, help="test problems of the embedded job (1000)")
    folder_options(group, OUTPUT_DIR)
    group.add_argument(
        "--dry-run", action="store_true", help="show the first prompts and the plan; train nothing, write nothing"
    )
    group.add_argument(
        "--quick", action="store_true", help="the embedded job in about a minute, for a first look: shortened"
    )
    group.add_argument("--allow-no-eviction", action="store_true", help="train even if the window holds every thought")
    group.add_argument("--force", action="store_true", help="train even if the planner says that it does not fit")
