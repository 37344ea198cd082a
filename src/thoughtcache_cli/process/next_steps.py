"""What to type next: behind the results of a command, and after a Ctrl-C."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thoughtcache_cli.arguments import DEFAULT_OUTPUT_DIRS
from thoughtcache_cli.process.launch import WORLD_SIZES

PROGRAM = "thoughtcache"
LAUNCHER = "torchrun --nproc_per_node {size} -m thoughtcache_cli"
SEVERAL_NODES = "torchrun ... -m thoughtcache_cli"
"""Where only whoever started the nodes knows the rest."""
SLIDING = {"eviction": "sliding", "evict_fraction": 0.25, "positions": "absolute", "eviction_budgets": "even"}
"""What a cache of an evaluation is without further settings."""


def going_on(given: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command that goes on with an interrupted one.

    Args:
        given: arguments of the interrupted one.
        environment: tells how many processes there were.
    """
    kept = [one for one in given if one not in ("--overwrite", "--resume")]
    size, here = (environment.get(name, "") for name in (WORLD_SIZES[0], "LOCAL_WORLD_SIZE"))
    program = PROGRAM
    if size.isdigit() and int(size) > 1:
        program = LAUNCHER.format(size=size) if here in ("", size) else SEVERAL_NODES
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


def _kept(options: Mapping[str, Any], *names: str) -> list[str]:
    """Options that mean the same to the next command, as they are typed."""
    given = [(f"--{name.replace('_', '-')}", str(options[name])) for name in names if name in options]
    return [part for pair in given for part in pair]


def _window_of(adapter: Path) -> str:
    """The cache of a saved adapter as `eval --cache` takes it; empty if nothing is evicted or there is no adapter."""
    file = adapter / "adapter_config.json"
    saved = json.loads(file.read_text()) if file.is_file() else {}
    if saved.get("window") is None:
        return ""
    own = {name: saved.get(name) or default for name, default in SLIDING.items()}
    parts = [("window", saved["window"])]
    parts += [(name.replace("_", "-"), _typed(value)) for name, value in own.items() if value != SLIDING[name]]
    parts += [("eviction-option", f"{key}={value}") for key, value in (saved.get("eviction_options") or {}).items()]
    return ",".join(f"{name}={value}" for name, value in parts)


def _typed(value: Any) -> str:
    """A setting of a cache as it is typed, with + signs between budgets of layers and / between those of heads."""
    if isinstance(value, list):
        rows = [row if isinstance(row, list) else [row] for row in value]
        by_head = any(len(row) > 1 for row in rows)
        return ("/" if by_head else "+").join("+".join(map(str, row)) for row in rows)
    return str(value).replace(",", "+")


def _after_training(options: Mapping[str, Any], folder: str) -> list[list[str]]:
    if "model" not in options:  # the embedded job
        own = ["train", "--model", "./model", "--dataset", "questions.jsonl", "--window", "512"]
        return [[*own, "--max-new-tokens", "2048", "--dry-run"]]
    model, adapter = ["--model", str(options["model"]), *_kept(options, "dtype")], str(Path(folder) / "adapter")
    window = _window_of(Path(adapter))
    windowed = ["--cache", window] if window else []
    caches = ["--cache", "full", *windowed, "--cache", f"adapter={adapter},name=mine"]
    evaluation = ["eval", "--suite", "gsm8k", "--limit", "100", *model, *caches]
    return [
        ["generate", *model, "--adapter", adapter, "a question"],
        [*evaluation, "--output-dir", f"{folder}-eval"],
        ["export", "--adapter", adapter, "--base-model", "OWNER/NAME", "--output-dir", f"{folder}-hub"],
    ]


def _after_distilling(options: Mapping[str, Any], folder: str) -> list[list[str]]:
    model, adapter = ["--model", str(options["model"]), *_kept(options, "dtype")], str(Path(folder) / "adapter")
    data = ["--dataset", str(options.get("dataset", "questions.jsonl"))]
    going = ["train", *model, *data, *_kept(options, "split", "prompt_column", "instruction")]
    return [
        ["generate", *model, "--adapter", adapter, "a question"],
        [*going, "--adapter", adapter, "--distill-steps", "0", "--output-dir", f"{folder}-grpo"],
    ]


def _after_recall(options: Mapping[str, Any], folder: str) -> list[list[str]]:
    several = any(len(options.get(name, ())) > 1 for name in ("learning_rate", "seed"))
    if several or options.get("steps") == 0:
        return []
    taught = _kept(options, "dtype", "text", "kind", "code_length")
    adapter = str(Path(folder) / "teach" / "adapter")
    return [["probe", "--model", str(options["model"]), "--adapter", adapter, "--what", "ages", *taught]]


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
