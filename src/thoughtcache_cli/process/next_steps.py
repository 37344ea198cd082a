"""What to type next: behind the results of a command, and after a Ctrl-C."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thoughtcache_cli.arguments import DEFAULT_OUTPUT_DIRS
from thoughtcache_cli.process.launch import WORLD_SIZES

PROGRAM = "thoughtcache"
LAUNCHER = "torchrun --nproc_per_node {size} -m thoughtcache_cli"


def going_on(given: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command that goes on with an interrupted one.

    Args:
        given: arguments of the interrupted one.
        environment: tells how many processes there were.
    """
    kept = [one for one in given if one not in ("--overwrite", "--resume")]
    size = environment.get(WORLD_SIZES[0], "")
    program = LAUNCHER.format(size=size) if size.isdigit() and int(size) > 1 else PROGRAM
    return f"{program} {shlex.join([*kept, '--resume'])}"


def next_steps(command: str, options: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Lines behind the results of a command: their folder, and commands to type; none where there is nothing to do.

    Args:
        command: name of the command.
        options: the options that were given.
        given: the same as they were typed.
    """
    if options.get("dry_run"):
        return ["next:", f"  {PROGRAM} {shlex.join([one for one in given if one != '--dry-run'])}"]
    folders = {**DEFAULT_OUTPUT_DIRS, "probe": "runs/probe"}
    if command not in folders:
        return []
    folder = str(options.get("output_dir", folders[command]))
    if command == "eval" and "compare" in options:
        folder = str(options.get("output_dir", "runs/comparison"))
    lines = [f"results folder: {folder}"]
    commands = _COMMANDS[command](options, folder) if command in _COMMANDS else []
    return [*lines, *(["next:"] if commands else []), *(f"  {PROGRAM} {shlex.join(one)}" for one in commands)]


def _after_training(options: Mapping[str, Any], folder: str) -> list[list[str]]:
    if "model" not in options:  # the embedded job
        own = ["train", "--model", "./model", "--dataset", "questions.jsonl", "--window", "512"]
        return [[*own, "--max-new-tokens", "2048", "--dry-run"]]
    model, adapter = str(options["model"]), str(Path(folder) / "adapter")
    windowed = ["--cache", f"window={options['window']}"] if options.get("window") else []
    caches = ["--cache", "full", *windowed, "--cache", f"adapter={adapter},name=mine"]
    evaluation = ["eval", "--suite", "gsm8k", "--limit", "100", "--model", model, *caches]
    return [
        ["generate", "--model", model, "--adapter", adapter, "a question"],
        [*evaluation, "--output-dir", f"{folder}-eval"],
        ["export", "--adapter", adapter, "--base-model", "OWNER/NAME", "--output-dir", f"{folder}-hub"],
    ]


def _after_distilling(options: Mapping[str, Any], folder: str) -> list[list[str]]:
    model, adapter = str(options["model"]), str(Path(folder) / "adapter")
    going = ["train", "--model", model, "--dataset", str(options.get("dataset", "questions.jsonl"))]
    return [
        ["generate", "--model", model, "--adapter", adapter, "a question"],
        [*going, "--adapter", adapter, "--distill-steps", "0", "--output-dir", f"{folder}-grpo"],
    ]


def _after_recall(options: Mapping[str, Any], folder: str) -> list[list[str]]:
    several = any(len(options.get(name, ())) > 1 for name in ("learning_rate", "seed"))
    if several or options.get("steps") == 0:
        return []
    return [["probe", "--model", str(options["model"]), "--adapter", str(Path(folder) / "teach" / "adapter")]]


def _after_evaluating(options: Mapping[str, Any], folder: str) -> list[list[str]]:
    if "compare" in options or "caches" in options:
        return []
    return [["eval", "--compare", folder, "OTHER_RUN"]]


_COMMANDS = {
    "train": _after_training,
    "distill": _after_distilling,
    "recall": _after_recall,
    "eval": _after_evaluating,
}
