"""Steps of GRPO with LoRA and its full cache, with LoRA under the window, and with the adapter, one after the other.

Everything but the adapter and its cache is the same: questions, lengths (end-of-sequence tokens end nothing), seeds and
trainer, and the learner's options where they are given; what is left to the planner it chooses for each. All arms have
this package's sampler and learner; TRL's own are not timed.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import learner_options
from thoughtcache.planning.plan import make_plan
from thoughtcache.planning.setting import plain_lora
from thoughtcache.planning.step_flops import step_flops
from thoughtcache.recipes.builders import free_memory, train_grpo
from thoughtcache.recipes.grpo_phase import grpo_rows, grpo_settings
from thoughtcache.recipes.load_adapter import adapted_model
from thoughtcache.recipes.load_model import load_tokenizer
from thoughtcache.recipes.plan.fit import fitted, planned_phases
from thoughtcache.recipes.prompts import encode_examples, examples_of
from thoughtcache.recipes.run.checks import check_prompt_window, check_questions, check_window
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.folder import SPACE_REMEDY
from thoughtcache.recipes.run.lengths import check_lengths
from thoughtcache.report.files import writing
from thoughtcache.report.phases import PhaseSeconds, print_phase_seconds, step_seconds, write_phase_seconds
from thoughtcache.report.progress import loading, plain_line
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import format_flops
from thoughtcache.train.rewards import math_correctness

FULL, WINDOWED, ADAPTER = "LoRA, full cache", "LoRA, window", "this adapter"
WARM_STEPS = 1
"""Steps in front of those that count."""
GIB = 1024**3
RESULTS = "cost.json"


def run_cost(run: RunConfig, thought: ThoughtConfig, console: Console | None = None) -> dict[str, Any]:
    """Time the arms; returns what is written to cost.json.

    Left behind in the folder: cost.json, time.json, time.md and time.png.

    Args:
        run: the settings; `model` and `dataset` are needed, `grpo_steps` are the steps that count.
        thought: settings of the adapter and its cache.
        console: where progress goes.

    Raises:
        ValueError, OSError: if the input cannot be used, or the folder holds a result and `run.overwrite` is not set.
    """
    assert run.model is not None
    assert run.dataset is not None
    console = console or Console()
    folder = Path(run.output_dir)
    if (folder / RESULTS).exists() and not run.overwrite:
        raise ValueError(f"{folder} already holds a result; add --overwrite, or choose another --output-dir")
    if thought.window is None:
        raise ValueError("window=None leaves nothing to compare with the full cache; set a window")
    check_window(run, thought)
    report = partial(console.print, markup=False, soft_wrap=True)
    config, tokenizer = load_tokenizer(run.model)
    examples = examples_of(run, report)
    examples, prompts = encode_examples(
        tokenizer, examples, instruction=run.instruction or None, bad_rows=run.bad_rows, report=report
    )
    check_questions(run, len(examples))
    check_lengths(prompts, run, thought, config)
    check_prompt_window(run, thought, prompts, config.num_hidden_layers)
    rows = grpo_rows(examples, tokenizer, run.instruction)
    arms: dict[str, ThoughtConfig] = {FULL: plain_lora(thought, None)}
    if not thought.is_plain_lora:
        arms[WINDOWED] = plain_lora(thought, thought.window)
    arms[ADAPTER] = thought
    measured: list[PhaseSeconds] = []
    runs: dict[str, RunConfig] = {}
    for name, settings in arms.items():  # all of them before the first one runs, which takes memory and time
        runs[name], lines = fitted(run, settings, config, prompts, console)
        plain_line(console, f"{name}: {' '.join(lines)}" if lines else name)
    for name, settings in arms.items():
        plain_line(console, f"{name}: {WARM_STEPS} step to warm up, then {run.grpo_steps}")
        measured.append(_timed(name, runs[name], settings, tokenizer, rows, console))
        free_memory()
    longest = max(map(len, prompts))
    planned = [_planned(runs[name], settings, config, prompts) for name, settings in arms.items()]
    more = {
        "planned peak, GiB": [f"{one['peak_bytes'] / GIB:.2f}" for one in planned],
        "FLOPs of sampling": [format_flops(one["sampling_flops"]) for one in planned],
        "FLOPs of the learner": [format_flops(one["learner_flops"]) for one in planned],
        "chunk_tokens": [str(one.chunk_tokens) for one in runs.values()],
        "checkpoint_layers": ["yes" if one.checkpoint_layers else "no" for one in runs.values()],
    }
    print_phase_seconds(measured, console, more)
    payload = {
        "environment": environment(),
        "model": run.model,
        "settings": {name: settings.behaviour() for name, settings in arms.items()},
        "planned": dict(zip(arms, planned, strict=True)),
        "prompt_tokens": longest,
        "max_new_tokens": run.max_new_tokens,
        "batch": run.grpo_batch_size,
        "group": run.group_size,
        "seed": run.seed,
        "learner": {name: learner_options(one) for name, one in runs.items()},
    }
    with writing(folder, SPACE_REMEDY):
        table = write_phase_seconds(folder, measured, more)
        write_results(folder / RESULTS, payload)
    plain_line(console, f"table: {table}\npicture: {folder / 'time.png'}\nresults: {folder / RESULTS}")
    return payload


def _timed(
    name: str,
    run: RunConfig,
    thought: ThoughtConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    console: Console,
) -> PhaseSeconds:
    """Steps of one arm."""
    assert run.model is not None
    adapter = run.adapter if name == ADAPTER else None
    with loading(run.model, console):
        model = adapted_model(
            run.model, thought, adapter=adapter, dtype=run.dtype, load_in_4bit=run.load_in_4bit, seed=run.seed
        )
    with tempfile.TemporaryDirectory() as scratch:
        log = train_grpo(
            model,
            tokenizer,
            rows,
            math_correctness,
            replace(run, save_every=0),
            folder=Path(scratch),
            resume=False,
            title=name,
            console=console,
            ignore_eos=True,
            **grpo_settings(run, WARM_STEPS + run.grpo_steps),
        )
    found = step_seconds(name, log[WARM_STEPS:], run.grpo_batch_size)
    assert found is not None, "the trainer logs seconds in every step"
    return found


def _planned(
    run: RunConfig, thought: ThoughtConfig, model: PretrainedConfig, prompts: list[list[int]]
) -> dict[str, float]:
    """Peak memory and arithmetic of a step in closed form."""
    (setting,) = planned_phases(run, thought, model, prompts)
    flops = step_flops(setting)
    return {
        "peak_bytes": float(make_plan(setting).total_bytes),
        "sampling_flops": float(flops.rollout),
        "learner_flops": float(flops.learner),
    }
