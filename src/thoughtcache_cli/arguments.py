"""Options of the command line. Defaults live in `thoughtcache.config`; an option that is not given is not passed on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from thoughtcache_cli.options.compare import EXAMPLES as COMPARE_EXAMPLES
from thoughtcache_cli.options.compare import OUTPUT_DIR as COMPARE_OUTPUT_DIR
from thoughtcache_cli.options.compare import add_options as add_compare_options
from thoughtcache_cli.options.cost import EXAMPLES as COST_EXAMPLES
from thoughtcache_cli.options.cost import OUTPUT_DIR as COST_OUTPUT_DIR
from thoughtcache_cli.options.cost import add_options as add_cost_options
from thoughtcache_cli.options.distill import EXAMPLES as DISTILL_EXAMPLES
from thoughtcache_cli.options.distill import OUTPUT_DIR as DISTILL_OUTPUT_DIR
from thoughtcache_cli.options.distill import add_options as add_distill_options
from thoughtcache_cli.options.eval import EXAMPLES as EVAL_EXAMPLES
from thoughtcache_cli.options.eval import OUTPUT_DIR as EVAL_OUTPUT_DIR
from thoughtcache_cli.options.eval import add_options as add_eval_options
from thoughtcache_cli.options.export import EXAMPLES as EXPORT_EXAMPLES
from thoughtcache_cli.options.export import add_options as add_export_options
from thoughtcache_cli.options.generate import EXAMPLES as GENERATE_EXAMPLES
from thoughtcache_cli.options.generate import add_options as add_generate_options
from thoughtcache_cli.options.perplexity import EXAMPLES as PERPLEXITY_EXAMPLES
from thoughtcache_cli.options.perplexity import OUTPUT_DIR as PERPLEXITY_OUTPUT_DIR
from thoughtcache_cli.options.perplexity import add_options as add_perplexity_options
from thoughtcache_cli.options.probe import EXAMPLES as PROBE_EXAMPLES
from thoughtcache_cli.options.probe import add_options as add_probe_options
from thoughtcache_cli.options.scale import EXAMPLES as SCALE_EXAMPLES
from thoughtcache_cli.options.scale import OUTPUT_DIR as SCALE_OUTPUT_DIR
from thoughtcache_cli.options.scale import add_options as add_scale_options
from thoughtcache_cli.options.shared import (
    adapter_options,
    base_options,
    folder_options,
    integers,
    learner_options,
    numbers,
    teacher_options,
)
from thoughtcache_cli.options.train import EXAMPLES as TRAIN_EXAMPLES
from thoughtcache_cli.options.train import OUTPUT_DIR as TRAIN_OUTPUT_DIR
from thoughtcache_cli.options.train import add_options as add_train_options

DEFAULT_OUTPUT_DIRS = {
    "train": TRAIN_OUTPUT_DIR,
    "recall": "runs/recall",
    "distill": DISTILL_OUTPUT_DIR,
    "eval": EVAL_OUTPUT_DIR,
    "scale": SCALE_OUTPUT_DIR,
    "compare-eviction": COMPARE_OUTPUT_DIR,
    "perplexity": PERPLEXITY_OUTPUT_DIR,
    "cost": COST_OUTPUT_DIR,
}

_RECALL_EXAMPLES = """\
examples:
  thoughtcache recall --model ./model --window 16
      an hour on one core for a model of 135M parameters
  thoughtcache recall --model ./model --window 16 --steps 60 --learning-rate 3e-3,1e-2 --seed 0,1
      which learning rate, and do seeds agree; a folder, a table and a picture for all
  thoughtcache recall --model ./model --adapter runs/mine/adapter --steps 0 --distances 1,8,64
      measure only
"""
_PLAN_EXAMPLES = """\
examples:
  thoughtcache plan --model Qwen/Qwen2.5-7B-Instruct --gpu 80GB --max-new-tokens 32000
  thoughtcache plan --model Qwen2.5-3B --gpu 24GB --batch 4 --chunk-tokens 256 --kv-log host --sweep
  thoughtcache plan --model ./config.json --gpu 40GB --trace --json plan.json
  thoughtcache plan --paper
      what the paper reports beside what is predicted here
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="thoughtcache",
        description="Train reasoning models under a fixed-size KV cache.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _train(commands)
    _generate(commands)
    _export(commands)
    _eval(commands)
    _scale(commands)
    _perplexity(commands)
    _distill(commands)
    _recall(commands)
    _probe(commands)
    _compare(commands)
    _cost(commands)
    _plan(commands)
    return parser


def command_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by its name."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


class _Version(argparse.Action):
    """Prints the version of the installed distribution, which is looked up only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(f"thoughtcache {metadata.version('thoughtcache')}")
        parser.exit()


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, examples: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,  # a script would break with the next option, and so would the command that goes on
    )


def _train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "distil and train with GRPO; without options, the embedded job"
    add_train_options(_command(commands, "train", summary, TRAIN_EXAMPLES))


def _generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "answer a question, a file of questions or a chat with a trained adapter"
    add_generate_options(_command(commands, "generate", summary, GENERATE_EXAMPLES))


def _export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "an adapter as a folder for the hub, with a model card that says what is known of it"
    add_export_options(_command(commands, "export", summary, EXPORT_EXAMPLES))


def _eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "how many questions of a suite are answered rightly, with intervals; and compare two runs"
    add_eval_options(_command(commands, "eval", summary, EVAL_EXAMPLES))


def _scale(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "accuracy over the most tokens of an answer, one line per cache or adapter"
    add_scale_options(_command(commands, "scale", summary, SCALE_EXAMPLES))


def _perplexity(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "how well texts are predicted under a cache, and how far that is from the full one"
    add_perplexity_options(_command(commands, "perplexity", summary, PERPLEXITY_EXAMPLES))


def _distill(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "teach an adapter what the full cache says, in stages"
    add_distill_options(_command(commands, "distill", summary, DISTILL_EXAMPLES))


def _recall(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands, "recall", "teach an adapter to remember, and measure how far back it does", _RECALL_EXAMPLES
    )
    group = parser.add_argument_group("model and texts")
    group.add_argument("--model", required=True, help="folder or hub id of a transformers model")
    group.add_argument("--adapter", help="folder of a trained adapter to start from, with its settings")
    group.add_argument("--dtype", help="of the base model: float32 (default), bfloat16 or float16")
    group.add_argument("--text", help="file whose sentences stand between a passcode and its question (built-in ones)")
    group.add_argument("--kind", help="what passcodes are made of: words (default) or digits")
    group.add_argument("--code-length", type=int, help="words or digits of a passcode (4)")
    adapter_options(parser, "memory")
    group = parser.add_argument_group("teaching")
    group.add_argument("--steps", type=int, help="optimiser steps, 0 to measure only (200)")
    group.add_argument("--batch-size", type=int, help="texts per step (8)")
    group.add_argument(
        "--learning-rate", type=numbers, help="peak learning rate (2e-2); several, with commas: a run each"
    )
    group.add_argument(
        "--memory-learning-rate", type=float, help="with --trains adapter: that of what writes and reads the states"
    )
    group.add_argument("--max-evictions", type=int, help="longest distance in training, in evictions (8)")
    group.add_argument(
        "--max-before", type=int, help="most text before a passcode in training, in evictions (--max-evictions)"
    )
    group.add_argument("--growth-steps", type=int, help="steps over which distances grow to it (0)")
    group.add_argument(
        "--min-code-length", type=int, help="shortest passcodes in training, up to --code-length (all alike)"
    )
    group.add_argument("--write-cost", type=float, help="what a token that is written adds to the loss, in nats (0.05)")
    group.add_argument("--trains", help="memory (default): the base stays as it is; or adapter: LoRA as well")
    group = parser.add_argument_group("measurement")
    group.add_argument("--codes", type=int, help="passcodes per distance (64)")
    group.add_argument("--distances", type=integers, help="evictions before the question (0,1,2,4,8,16,32,64)")
    group.add_argument("--before", type=integers, help="text before a passcode, in evictions (0,16)")
    group.add_argument("--no-baselines", dest="baselines", action="store_false", help="measure the adapter alone")
    group = parser.add_argument_group("run")
    folder_options(group, DEFAULT_OUTPUT_DIRS["recall"], several_seeds=True)


def _probe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "what do the states of an adapter carry, how do they look, and what is remembered"
    add_probe_options(_command(commands, "probe", summary, PROBE_EXAMPLES))


def _compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "which eviction policy loses least, without training, and what it costs"
    add_compare_options(_command(commands, "compare-eviction", summary, COMPARE_EXAMPLES))


def _cost(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "seconds of a training step by phase, memory and FLOPs, beside LoRA with full cache and LoRA with window"
    add_cost_options(_command(commands, "cost", summary, COST_EXAMPLES))


def _plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands, "plan", "does a run fit, what is the largest that does, where the memory goes", _PLAN_EXAMPLES
    )
    group = parser.add_argument_group("model and device")
    group.add_argument("--model", help="hub id (common ones are bundled), folder or config.json; weights are not read")
    group.add_argument("--gpu", help="memory of the device (80GB)")
    group.add_argument("--reserve", help="CUDA context, fragmentation and what else is no tensor (1GB on cuda)")
    group.add_argument("--device-type", help="cuda (default) or cpu")
    base_options(group, "bfloat16 (default), float16 or float32")
    adapter_options(parser)
    learner_options(parser, reuse_field="reuse")
    group = parser.add_argument_group("run")
    group.add_argument("--objective", help="grpo (default) or distill: cache distillation")
    group.add_argument("--prompt-tokens", type=int, help="longest prompt (512)")
    group.add_argument(
        "--batch", type=int, help="completions in one micro-batch of the learner, also below --group (8)"
    )
    group.add_argument("--group", type=int, help="completions per prompt (8)")
    group.add_argument(
        "--rollout-batch", type=int, help="completions decoded at once (larger of batch and group; distill: chosen)"
    )
    teacher_options(group, sizes=False)
    group.add_argument("--unequal-prompts", action="store_true", help="prompts of a batch differ in length: masks")
    group.add_argument("--logits", help="of full-cache LoRA: chunked (default, TRL 1.16) or materialised (earlier)")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--tokens-per-second",
        type=float,
        help="thought tokens that your learner takes per second without savings: hours beside FLOP",
    )
    group.add_argument("--sweep", action="store_true", help="3K, 8K, 32K and 64K tokens, with a picture")
    group.add_argument("--picture", help="file of the picture (plan.png)")
    group.add_argument("--trace", action="store_true", help="check against the real code under fake tensors")
    group.add_argument("--measure", dest="measured", action="store_true", help="check against a run in a child process")
    group.add_argument("--json", help="file for all numbers")
    group.add_argument("--paper", action="store_true", help="compare with the memory that the paper reports")
