"""Options of `thoughtcache eval`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from thoughtcache_cli.options.shared import CACHE_HELP, cache_options, cache_settings, names
from thoughtcache_cli.options.thinking import add_thinking_options

OUTPUT_DIR = "runs/eval"
EXAMPLES = """\
examples:
  thoughtcache eval --suite embedded --window 16
      the packaged reasoner under a window, about ten seconds
  thoughtcache eval --suite math500,gsm8k --model ./model --adapter runs/mine/adapter --output-dir runs/mine-eval
      an adapter is asked as it was trained: its tokenizer, chat template, instruction and cache
  thoughtcache eval --suite aime24,aime25 --model ./model --window 1024 --eviction h2o --max-new-tokens 8192
      the base alone under a window: 16 samples per question, avg@16, pass@16 and maj@16
  thoughtcache eval --suite mine=questions.jsonl --model ./model --samples 4 --temperature 0.8
      questions of your own
  thoughtcache eval --suite aime24 --model ./model --select think@n --max-new-tokens 8192
      48 answers are begun; the half that thinks deepest is finished, and votes
  thoughtcache eval --suite embedded --cache full --cache window=32 --cache window=32,eviction=h2o --limit 200
      one table for several caches, and how each differs from the first one
  thoughtcache eval --compare runs/base-eval runs/mine-eval
      which is better on the same questions, and what difference could have been seen
"""


class Limits(argparse.Action):
    """Reads one number, or a number for each of several suites."""

    def __call__(  # noqa: D102 - argparse calls it
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        pairs = [part.rpartition("=") for part in str(values).split(",")]
        several = len(pairs) > 1 or bool(pairs[0][1])
        if several and not all(name.strip() and equals for name, equals, _ in pairs):
            parser.error(f"argument {option_string}: {values!r} is neither a number nor SUITE=N,SUITE=N")
        found: dict[str, int] = {}
        for name, _, number in pairs:
            if name.strip() in found:
                parser.error(f"argument {option_string}: {name.strip()} is given twice; leave out one of them")
            try:
                found[name.strip()] = int(number)
            except ValueError:
                parser.error(f"argument {option_string}: {number!r} is no number of questions")
        setattr(namespace, self.dest, found if several else found[""])


def question_options(parser: argparse.ArgumentParser) -> None:
    """Enter which questions are asked, of which model, and with which prompt."""
    group = parser.add_argument_group("questions")
    group.add_argument(
        "--suite",
        type=names,
        help="between commas: math500, aime24, aime25, amc23, olympiadbench, minerva, gsm8k, embedded, multiplication, "
        "chains-N (long chains of N operations); or NAME=PATH with a file, folder or hub id",
    )
    group.add_argument("--data", help="folder with a folder per suite (the hub's data sets)")
    group.add_argument(
        "--limit",
        action=Limits,
        metavar="N",
        help="the first questions of each suite only (all); gsm8k=50,math500=20 of these suites",
    )
    group.add_argument("--prompt-column", help="column with the question (found by name)")
    group.add_argument("--answer-column", help="column with the reference answer (found by name)")
    group.add_argument("--answer-type", help="how answers are compared (as the suite says; auto for your own)")
    group.add_argument("--bad-rows", help="refuse (default) or drop rows without a usable question or reference answer")
    group = parser.add_argument_group("model and prompt")
    group.add_argument("--model", help="folder or hub id of a transformers model (the packaged reasoner)")
    group.add_argument("--adapter", help="folder of a trained adapter; without one the base is asked")
    group.add_argument("--dtype", help="of the base model: float32 (default), bfloat16 or float16")
    group.add_argument("--tokenizer", help="folder or hub id of another tokenizer and chat template")
    group.add_argument("--instruction", help='text after each question, "" for none (of the adapter, or the suite)')
    group.add_argument("--system", help="system message before each question (none)")


def answer_options(parser: argparse.ArgumentParser, samples: str) -> argparse._ArgumentGroup:
    """Enter how answers are sampled.

    Args:
        parser: parser of a command.
        samples: how many there are to a question by default, for the help.

    Returns:
        Their group.
    """
    group = parser.add_argument_group("answers")
    group.add_argument("--samples", type=int, help=f"answers per question ({samples})")
    group.add_argument(
        "--temperature", type=float, help="0 decodes greedily (0.6 for several samples, 0 for a single one)"
    )
    group.add_argument("--top-p", type=float, help="draw from the most likely tokens of this probability together (1)")
    group.add_argument("--top-k", type=int, help="draw from so many tokens, the most likely ones; 0 for all (0)")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end with this text; may be given repeatedly")
    return group


def arm_options(parser: argparse.ArgumentParser) -> None:
    """Enter the cache, and several of them."""
    cache_options(parser)
    group = parser.add_argument_group("several caches", "The same questions under each, in one table.")
    group.add_argument(
        "--cache", dest="caches", action="append", type=cache_settings, metavar="SETTINGS", help=CACHE_HELP
    )


def run_options(parser: argparse.ArgumentParser, output_dir: str) -> argparse._ArgumentGroup:
    """Enter the options of a run with a folder; returns their group.

    Args:
        parser: parser of a command.
        output_dir: the default folder, for the help.
    """
    group = parser.add_argument_group("run")
    group.add_argument("--batch-size", type=int, help="answers that are sampled at once (32)")
    group.add_argument(
        "--no-pack-weights", dest="pack_weights", action="store_false", help="on a CPU: sample slower, in less memory"
    )
    group.add_argument("--seed", type=int, help="of the sampling (0)")
    group.add_argument("--output-dir", help=f"run folder ({output_dir})")
    group.add_argument("--resume", action="store_true", help="go on where the run in this folder stopped")
    group.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds another run")
    return group


def add_options(parser: argparse.ArgumentParser) -> None:
    """Enter the options."""
    question_options(parser)
    group = answer_options(parser, "16 for aime and amc, else 1; 48 with --select")
    group.add_argument("--max-new-tokens", type=int, help="most tokens of an answer (3072)")
    group = parser.add_argument_group("choosing among answers")
    group.add_argument("--select", help="think@n: finish those whose beginnings think deepest, which then vote (none)")
    group.add_argument("--think-prefix", type=int, help="tokens that every answer is begun with (50)")
    group.add_argument("--think-keep", type=float, help="share of the answers that are finished (0.5)")
    group.add_argument(
        "--think-threshold", type=float, help="divergence from the last layer at which a token has settled (0.5)"
    )
    group.add_argument("--think-depth", type=float, help="rho: which of the layers are late (0.85)")
    group.add_argument(
        "--think-reading", help="late layers begin with ceil(rho L): equation (default); ceil((1 - rho) L): algorithm"
    )
    group.add_argument(
        "--no-think-norm", dest="think_norm", action="store_false", help="no final norm before the head at other layers"
    )
    group.add_argument("--think-log-base", help="of the divergence: 2 (default) or e")
    group.add_argument(
        "--think-finish-rest", action="store_true", help="finish the others as well, for maj@n on the same samples"
    )
    arm_options(parser)
    add_thinking_options(parser, "--max-new-tokens bounds all links together.")
    group = run_options(parser, f"{OUTPUT_DIR}; runs/comparison with --compare")
    group.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="compare two runs that were made")
