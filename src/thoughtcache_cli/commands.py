"""The commands: options become configurations, then comes one call into the library."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from safetensors import SafetensorError

from thoughtcache.config import ThoughtConfig
from thoughtcache.presets import PRESETS, default_preset, preset_settings
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.train.trainer_options.stop_between_steps import interrupts_between_steps
from thoughtcache_cli.arguments import DEFAULT_OUTPUT_DIRS, build_parser, command_parsers
from thoughtcache_cli.process.interrupts import answered
from thoughtcache_cli.words import in_options

USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, SafetensorError)

_EMBEDDED_FIELDS = {
    "output_dir", "task", "seed", "evaluation_size", "save_every", "resume", "overwrite", "profile_memory",
    "quick",
}  # fmt: skip
_RUN_FIELDS = {field.name for field in dataclasses.fields(RunConfig)}


@interrupts_between_steps(answered)
def train(options: dict[str, Any]) -> None:
    """`thoughtcache train`: the embedded job, or a model and data of the user."""
    run = RunConfig(**{name: value for name, value in options.items() if name in _RUN_FIELDS})
    adapter_options = {name: value for name, value in options.items() if name not in _RUN_FIELDS}
    if run.model is None:
        from thoughtcache.recipes.embedded.job import run_embedded

        given = set(options) - _EMBEDDED_FIELDS
        if given:
            actions = command_parsers(build_parser())["train"]._actions
            names = ", ".join(sorted(action.option_strings[-1] for action in actions if action.dest in given))
            raise ValueError(
                f"the embedded job is fixed and takes no {names}; "
                "add --model and --dataset to train a model of your own"
            )
        run_embedded(run)
        return
    from thoughtcache.recipes.real_model import run_real_model

    run_real_model(run, _settings(run.adapter, adapter_options))


def _settings(adapter: str | None, options: dict[str, Any], default: str = "paper") -> ThoughtConfig:
    """Settings of a new adapter, or those of a saved one with changes.

    Args:
        adapter: folder of the saved one.
        options: settings that were given, and a preset.
        default: the preset of the command, for whoever chooses no method.
    """
    from thoughtcache.recipes.load_adapter import settings_to_start_from

    if adapter is not None:
        return settings_to_start_from(adapter, options)
    settings = dict(options)
    name = settings.pop("preset", None) or default_preset(default, settings)
    settings = preset_settings(name, settings)
    if name != "paper":
        print(f"preset: {name} ({', '.join(f'{key}={settings[key]}' for key in PRESETS[name])})", flush=True)
    return ThoughtConfig(**settings)


def generate(options: dict[str, Any]) -> None:
    """`thoughtcache generate`: print one answer, hold a chat, or answer a file of questions."""
    from rich.console import Console

    from thoughtcache.recipes.generate.asking import Asking, Speaker
    from thoughtcache.recipes.generate.chat import chat, read_messages
    from thoughtcache.recipes.generate.many import Questions, answer_questions
    from thoughtcache.report.progress import loading, shows_live

    options = dict(options)  # an interruption looks at what was given
    given = [name for name in ("prompt", "messages", "questions") if name in options]
    chats = options.pop("chat", False)
    if len(given) > 1 or (chats and given not in ([], ["messages"])) or not (given or chats):
        raise ValueError(
            "generate answers one of: a question, --messages FILE, --questions FILE with --output FILE, or --chat, "
            f"which may follow --messages; got {' and '.join([*given, *(['chat'] if chats else [])]) or 'none of them'}"
        )
    names = {field.name for field in dataclasses.fields(Questions)}
    file = {name: options.pop(name) for name in names if name in options}
    prompt, messages = options.pop("prompt", None), options.pop("messages", None)
    asking = Asking(**options)
    if file:
        if "output" not in file:
            raise ValueError("the answers to --questions need a file: add --output FILE, such as answers.jsonl")
        answer_questions(Questions(**file), asking, Console(stderr=True))
        return
    history = [] if messages is None else read_messages(messages)
    errors = Console(stderr=True)
    with loading(asking.model, errors) if shows_live(errors) else nullcontext():
        speaker = Speaker(asking)
    if chats:
        chat(speaker, _typed(), _say, _complain, history=history)
    else:
        speaker.answer(history or [{"role": "user", "content": str(prompt)}], _say)
        _say("\n")


def _say(piece: str) -> None:
    print(piece, end="", flush=True)


def _complain(message: str) -> None:
    """Say what is wrong with a turn of a chat, as with the whole command."""
    message = in_options(" ".join(message.split()), command_parsers(build_parser())["generate"])
    print(f"thoughtcache: error: {message}", file=sys.stderr, flush=True)


def _typed() -> Iterator[str]:
    """What is typed, line by line, until the end of the input; asked for on a terminal only."""
    shows = sys.stdin.isatty()
    while True:
        try:
            yield input("> " if shows else "")
        except EOFError:
            return


def export(options: dict[str, Any]) -> None:
    """`thoughtcache export`: make a folder for the hub."""
    from thoughtcache.recipes.export.folder import export_adapter

    export_adapter(**options)


def evaluate(options: dict[str, Any]) -> None:
    """`thoughtcache eval`: the suites of a model, or two runs beside each other."""
    if "compare" in options:
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            raise ValueError("compare reads two runs in one process; start it without torchrun")
        from thoughtcache.recipes.evaluate.compare import run_compare

        first, second = options.pop("compare")
        run_compare(first, second, **options)
        return
    from thoughtcache.recipes.evaluate.config import EvalRun
    from thoughtcache.recipes.evaluate.run import run_eval
    from thoughtcache.recipes.evaluate.several import run_eval_caches
    from thoughtcache.scale.exchange import LostProcess

    caches = options.pop("caches", None)
    run = EvalRun(**{"suite": (), **options})
    try:
        run_eval(run) if caches is None else run_eval_caches(run, caches)
    except LostProcess as error:
        raise ValueError(str(error)) from error


def scale(options: dict[str, Any]) -> None:
    """`thoughtcache scale`: the suites of a model at several lengths, under one cache or several."""
    from thoughtcache.evaluation.suites import growing_suite
    from thoughtcache.recipes.evaluate.arms import CACHE
    from thoughtcache.recipes.evaluate.config import EvalRun
    from thoughtcache.recipes.scaling.operations import run_scale_operations
    from thoughtcache.recipes.scaling.points import lengths_of
    from thoughtcache.recipes.scaling.run import run_scale
    from thoughtcache.scale.exchange import LostProcess

    single = {name: options.pop(name) for name in CACHE if name in options}
    caches = options.pop("caches", [single])
    defaults = {"suite": (), "output_dir": DEFAULT_OUTPUT_DIRS["scale"]}
    operations = options.pop("operations", None)
    try:
        if operations is not None:
            suites = tuple(growing_suite(number) for number in operations)
            run_scale_operations(EvalRun(**{**defaults, **options, "suite": suites}), caches)
            return
        lengths = lengths_of(options.pop("lengths", None), options.pop("factors", None), options.get("base_length"))
        more: dict[str, Any] = {name: options.pop(name) for name in ("base_length", "sample_each") if name in options}
        run_scale(EvalRun(**{**defaults, **options}), caches, lengths=lengths, **more)
    except LostProcess as error:
        raise ValueError(str(error)) from error


def perplexity(options: dict[str, Any]) -> None:
    """`thoughtcache perplexity`: texts under a bounded cache beside the full one."""
    from thoughtcache.recipes.perplexity.config import PerplexityRun
    from thoughtcache.recipes.perplexity.run import run_perplexity

    run_perplexity(PerplexityRun(**options))


@interrupts_between_steps(answered)
def distill(options: dict[str, Any]) -> None:
    """`thoughtcache distill`: stages of a recipe on texts, measured on held-out ones."""
    from thoughtcache.recipes.distill.config import DistillRun
    from thoughtcache.recipes.distill.run import run_distill

    names = {field.name for field in dataclasses.fields(DistillRun)}
    run = DistillRun(**{name: value for name, value in options.items() if name in names})
    rest = {name: value for name, value in options.items() if name not in names}
    run_distill(run, _settings(run.adapter, rest, "hybrid"))


@interrupts_between_steps(answered)
def recall(options: dict[str, Any]) -> None:
    """`thoughtcache recall`: teach an adapter to remember, and measure it; for every learning rate and seed."""
    from thoughtcache.recipes.recall import RecallRun, run_recall
    from thoughtcache.recipes.recall_grid import run_recall_grid

    several = {name: options.pop(name) for name in ("learning_rate", "seed") if name in options}
    single = {name: values[0] for name, values in several.items()}
    names = {field.name for field in dataclasses.fields(RecallRun)}
    run = RecallRun(**single, **{name: value for name, value in options.items() if name in names})
    thought = _settings(run.adapter, {n: value for n, value in options.items() if n not in names}, "memory")
    if all(len(values) == 1 for values in several.values()):
        run_recall(run, thought)
        return
    rates, seeds = several.get("learning_rate", (run.learning_rate,)), several.get("seed", (run.seed,))
    run_recall_grid(run, thought, learning_rates=rates, seeds=seeds)


def probe(options: dict[str, Any]) -> None:
    """`thoughtcache probe`: what do the states of an adapter carry?"""
    from thoughtcache.recipes.probe.run import run_probe
    from thoughtcache.recipes.probe.subject import ProbeRun

    run_probe(ProbeRun(**options))


def compare_eviction(options: dict[str, Any]) -> None:
    """`thoughtcache compare-eviction`: the base under every eviction policy, measured."""
    from thoughtcache.recipes.compare.config import CompareRun
    from thoughtcache.recipes.compare.run import run_compare

    run_compare(CompareRun(**options))


def cost(options: dict[str, Any]) -> None:
    """`thoughtcache cost`: seconds, memory and arithmetic of a training step beside plain LoRA."""
    from thoughtcache.recipes.cost.run import run_cost
    from thoughtcache_cli.options.cost import OUTPUT_DIR

    options = {"output_dir": OUTPUT_DIR, **options}
    steps = options.pop("steps")
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    run = RunConfig(
        distill_steps=0, grpo_steps=steps, **{name: value for name, value in options.items() if name in _RUN_FIELDS}
    )
    run_cost(run, _settings(run.adapter, {n: value for n, value in options.items() if n not in _RUN_FIELDS}))


def plan(options: dict[str, Any]) -> None:
    """`thoughtcache plan`: print where the memory of a run would go."""
    from thoughtcache.recipes.plan.memory_plan import plan_memory

    plan_memory(**options)


COMMANDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "train": train,
    "generate": generate,
    "export": export,
    "eval": evaluate,
    "scale": scale,
    "perplexity": perplexity,
    "distill": distill,
    "recall": recall,
    "probe": probe,
    "compare-eviction": compare_eviction,
    "cost": cost,
    "plan": plan,
}
