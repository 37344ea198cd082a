"""`python -m benchmarks [sampler | learner]`: run benchmarks, print them, leave JSON files and pictures.

Without a name: the quick sizes of both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks import learner
from benchmarks.learner_case import LEARNERS
from benchmarks.sampler import suite
from benchmarks.sampler.case import MODELS
from benchmarks.sampler.sizes import NAMES


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--output", default="runs/bench", help="folder for results")
    shared.add_argument("--threads", type=int, default=1, help="PyTorch threads of each child process")
    names = parser.add_subparsers(dest="name", metavar="{sampler,learner}")
    sampler = names.add_parser("sampler", parents=[shared], help="rollouts against generate and TRL's generation")
    sampler.add_argument("--cases", nargs="+", choices=NAMES, default=list(NAMES), help="what to measure")
    sampler.add_argument("--model", help="folder of SmolLM2-135M; without it only the embedded reasoner is measured")
    sampler.add_argument("--models", nargs="+", choices=MODELS, help="all that there are by default")
    sampler.add_argument("--quick", action="store_true", help="small sizes on the embedded reasoner, nothing is judged")
    sampler.add_argument("--device", default="cpu", help="of the models")
    learners = names.add_parser("learner", parents=[shared], help="learner steps against TRL's learner")
    learners.add_argument("--cases", nargs="+", choices=list(learner.CASES), default=["quick"], help="sizes")
    learners.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS), help="what to compare")
    learners.add_argument("--lengths", nargs="+", type=int, metavar="TOKENS", help="only these of the sizes")
    learners.add_argument(
        "--one-child", action="store_true", help="time and memory from the same process: half the time, rougher times"
    )
    learners.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base")
    return parser


def run_sampler(console: Console, options: argparse.Namespace) -> None:
    """What `sampler` names."""
    models = options.models or (["tiny"] if options.model is None or options.quick else list(MODELS))
    suite.run(
        console, options.cases, Path(options.output), models=models, folder=options.model, quick=options.quick,
        threads=options.threads, device=options.device,
    )  # fmt: skip


def run_learner(console: Console, options: argparse.Namespace) -> None:
    """What `learner` names."""
    learner.run(
        console, options.cases, options.learners, Path(options.output), threads=options.threads, dtype=options.dtype,
        lengths=options.lengths, one_child=options.one_child,
    )  # fmt: skip


def main() -> None:
    """Run what the command line names."""
    parser, console = make_parser(), Console()
    options = parser.parse_args()
    if options.name == "sampler":
        if "smollm2" in (options.models or ()) and options.model is None:
            parser.error("smollm2 needs its folder: --model FOLDER")
        run_sampler(console, options)
    elif options.name == "learner":
        run_learner(console, options)
    else:
        run_learner(console, parser.parse_args(["learner"]))
        run_sampler(console, parser.parse_args(["sampler", "--quick"]))


if __name__ == "__main__":
    main()
