"""The job on a model and data of the user: cache distillation, then GRPO, then a saved adapter.

Same stages and same trainers as the embedded job; only the model, the data and the reward differ.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from thoughtcache.adapter.positions import position_reach, positions_needed
from thoughtcache.chains.folding import StepFolding
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import AUTO, replay_options
from thoughtcache.planning.fit import usable_here
from thoughtcache.recipes.before_after import (
    FULL,
    START,
    WINDOWED,
    BeforeAfter,
    Questions,
    num_held_out,
    split_questions,
    unjudged,
    why_none_held_out,
)
from thoughtcache.recipes.builders import free_memory, save_adapter
from thoughtcache.recipes.distill_phase import distill_phase as _distill
from thoughtcache.recipes.grpo_phase import grpo_phase as _grpo
from thoughtcache.recipes.grpo_phase import grpo_rows, rewards_of, thinking_of
from thoughtcache.recipes.load_adapter import WEIGHTS, adapted_model
from thoughtcache.recipes.load_model import load_tokenizer
from thoughtcache.recipes.plan.fit import CHOSEN, fitted
from thoughtcache.recipes.prompts import encode_examples, examples_of, no_longer_than
from thoughtcache.recipes.run.baseline import (
    AFTER_DISTILLING,
    AFTER_GRPO,
    LORA,
    announced,
    baseline_config,
    baseline_folder,
    baseline_run,
    belonging,
    check_asked,
    check_baseline,
    finished_rows,
)
from thoughtcache.recipes.run.checks import (
    check_link_window,
    check_more_distillation,
    check_prompt_window,
    check_questions,
    check_window,
)
from thoughtcache.recipes.run.columns import as_table
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.dry_run import print_prompts, print_run_plan
from thoughtcache.recipes.run.folder import WRITING_REMEDY, PhaseResult, RunFolder
from thoughtcache.recipes.run.lengths import check_lengths
from thoughtcache.recipes.run.own_rewards import NUM_TRIED, reward_digest, try_reward
from thoughtcache.recipes.run.reward_guard import check_folded
from thoughtcache.recipes.run.settings import (
    FREE_OPTIONS,
    TRANSIENT_OPTIONS,
    adapter_settings,
    data_identity,
    default_settings,
    model_identities,
)
from thoughtcache.recipes.teacher_samples import has_samples
from thoughtcache.report.files import writing
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import loading, plain_line
from thoughtcache.report.results import environment, write_results
from thoughtcache.tasks.example import Example
from thoughtcache.tasks.saved_prompt import save_prompt_format
from thoughtcache.train.checkpoints import load_weights
from thoughtcache.train.trainer_options.reports import check_report

NOT_DESCRIBED = {*TRANSIENT_OPTIONS, "task", "evaluation_size", "quick"}
"""Options of one call, and those of the embedded job."""
BEFORE = {"held_out": 0}
"""What runs did before there was an option, where that is not what its default does."""
KEPT: dict[str, Any] = {
    "free": FREE_OPTIONS,
    "growing": ("distill_steps", "grpo_steps"),
    "defaults": {**default_settings(RunConfig), **BEFORE, "thought": adapter_settings(ThoughtConfig())},
}
"""What is compared when a run goes on: arguments of `RunFolder`."""


def run_real_model(run: RunConfig, thought: ThoughtConfig, console: Console | None = None) -> dict[str, Any]:
    """Distil and train with GRPO; returns what is written to results.json, or what a dry run showed.

    Args:
        run: the settings; `model` and `dataset` are needed.
        thought: settings of the adapter and its cache; they are those of the adapter that the run starts from, if any.
        console: where progress goes.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
    """
    assert run.model is not None
    assert run.dataset is not None
    console = console or Console()
    _ = replay_options(run)
    check_window(run, thought)
    check_baseline(run, thought)
    check_report(run.report_to)
    own_rewards = rewards_of(run) if run.grpo_steps and run.reward else {}
    described = {name: value for name, value in asdict(run).items() if name not in NOT_DESCRIBED}
    if own_rewards:
        described["reward_digests"] = [reward_digest(name, reward) for name, reward in own_rewards.items()]
    earlier = finished_rows(run)  # of a baseline that this call does not ask for
    folder = RunFolder(
        run.output_dir,
        {**described, "baseline": run.baseline or bool(earlier), "thought": adapter_settings(thought)},
        resume=run.resume,
        overwrite=run.overwrite,
        belonging=belonging(run.output_dir),
        **KEPT,
    )
    check_more_distillation(run, folder)
    report = partial(console.print, markup=False, soft_wrap=True)
    examples = examples_of(run, report)
    config, tokenizer = load_tokenizer(run.model)
    examples, prompts = encode_examples(
        tokenizer, examples, instruction=run.instruction or None, bad_rows=run.bad_rows, report=report
    )
    examples, prompts = no_longer_than(examples, prompts, run.max_prompt_tokens, report)
    asked: Questions = [], []
    held_out = ""  # said once nothing is refused any more
    every, every_example = prompts, examples
    if run.grpo_steps:
        fault = unjudged(run, examples)
        count = num_held_out(run, len(examples), fault)
        (examples, prompts), asked = split_questions(examples, prompts, count)
        if asked[0]:
            held_out = f"held out: {len(asked[0])} questions, chosen by a digest of their prompts (--held-out)"
        elif run.held_out is None:
            held_out = f"held out: no questions, because {why_none_held_out(fault)}"
    check_asked(run, len(asked[0]))
    check_questions(run, len(examples))
    if own_rewards:
        table_rows = as_table(grpo_rows(examples, tokenizer, run.instruction), run.dataset)
        tried = list(table_rows.select(range(min(NUM_TRIED, len(table_rows)))))
        for name, reward in own_rewards.items():
            try_reward(name, reward, tried, tokenizer)
    thinking = thinking_of(run, tokenizer)
    if isinstance(thinking, StepFolding):
        check_folded(own_rewards)
    check_lengths(every, run, thought, config, thinking)
    check_prompt_window(run, thought, every, config.num_hidden_layers)
    check_link_window(run, thought, every, thinking, config.num_hidden_layers)
    folder.describe(_identities(run, config, every, every_example))
    shown = print_prompts(prompts, examples, tokenizer, console) if run.dry_run else []
    needed = min(len(prompts), run.distill_steps * run.distill_batch_size)
    sampled = folder.stored is not None and has_samples(folder.samples_file("teacher"), needed)
    stored = (folder.stored or {}).get("chosen")
    run, chosen = fitted(run, thought, config, every, console, stored=stored, sampled=sampled)
    folder.describe({"chosen": {name: getattr(run, name) for name in CHOSEN if getattr(run, name) != AUTO}})
    lora, lora_run = baseline_config(thought), baseline_run(run)
    beside = baseline_folder(lora_run, lora, folder.described, **KEPT) if run.baseline else None
    doubled = announced(run, thought) if run.baseline else ""
    if run.resume and not run.baseline and not earlier and belonging(run.output_dir):
        doubled = "baseline: not finished for these steps, and not in the table; --baseline goes on with it"
    if run.dry_run:
        for line in filter(None, (held_out, *chosen, doubled)):
            report(line)
        available = usable_here("cuda" if torch.cuda.is_available() else "cpu")
        planned = print_run_plan(run, thought, config, every, available, console)
        plain_line(console, "dry run: nothing was trained and nothing was written")
        return {"prompts": shown, "planned_bytes": planned}
    assert run.model is not None
    with loading(run.model, console):
        model = adapted_model(
            run.model, thought, adapter=run.adapter, dtype=run.dtype, load_in_4bit=run.load_in_4bit, seed=run.seed
        )
    for line in filter(None, (held_out, *chosen, doubled)):
        report(line)
    table = BeforeAfter(
        run=run, thought=thought, folder=folder, examples=asked[0], prompts=asked[1], thinking=thinking,
        tokenizer=tokenizer, console=console,
    )  # fmt: skip
    with writing(folder.path, WRITING_REMEDY):
        table.ask_base(model, fits_in_full=_fits_in_full(run, config, every))
        if run.adapter is not None:
            table.ask(START, model)
        samples = folder.samples_file("teacher")
        phases = _phases(run, folder, model, tokenizer, prompts, examples, table, console, samples)
        table.stand_beside(earlier, LORA)
        payload = _written(run, folder, model, tokenizer, phases, table.report())
        if beside is not None:
            del model  # one of the two at a time has to fit
            free_memory()
            plain_line(console, f"baseline: {LORA} in {beside.path}")
            with loading(run.model, console):
                model = adapted_model(
                    run.model, lora, adapter=None, dtype=run.dtype, load_in_4bit=run.load_in_4bit, seed=run.seed
                )
            own = replace(table, run=lora_run, thought=lora, folder=beside, prefix=f"{LORA} ")
            own.rows |= {name: table.rows[name] for name in (FULL, WINDOWED) if name in table.rows}
            its = _phases(lora_run, beside, model, tokenizer, prompts, examples, own, console, samples)
            _written(lora_run, beside, model, tokenizer, its, own.numbers())
            table.stand_beside(own.rows, LORA)
            payload = {**payload, "before_after": table.report()}
            write_results(folder.path / "results.json", payload)
    console.print(f"adapter: {folder.path / 'adapter'}\nresults: {folder.path / 'results.json'}", soft_wrap=True)
    return payload


def _phases(
    run: RunConfig,
    folder: RunFolder,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    examples: list[Example],
    table: BeforeAfter,
    console: Console,
    samples: Path,
) -> dict[str, PhaseResult]:
    """Run the phases and return the result of each; `model` ends with the adapter of the last one."""
    phases: dict[str, PhaseResult] = {}
    if run.distill_steps:
        phases["distill"] = folder.phase(
            "distill",
            lambda path, resume: _distill(run, model, tokenizer, prompts, path, samples, resume, console, table.prefix),
            num_steps=run.distill_steps,
        )
        load_weights(model, folder.path / "distill" / "adapter")  # the phase may have run in an earlier call
        table.ask(AFTER_DISTILLING, model, run.distill_steps)
    if run.grpo_steps:
        phases["grpo"] = folder.phase(
            "grpo",
            lambda path, resume: _grpo(run, model, tokenizer, examples, path, resume, console, table.prefix),
            num_steps=run.grpo_steps,
        )
        load_weights(model, folder.path / "grpo" / "adapter")
        table.ask(AFTER_GRPO, model, run.grpo_steps)
    return phases


def _written(
    run: RunConfig,
    folder: RunFolder,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    phases: dict[str, PhaseResult],
    asked: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write adapter, results.json and curves.png; returns what is in results.json."""
    save_adapter(model, folder.path / "adapter")
    for phase in ("", *phases):
        _save_format(folder.path / phase / "adapter", tokenizer, run)
    payload = {"run": folder.described, "environment": environment(), "phases": phases, "before_after": asked}
    write_results(folder.path / "results.json", payload)
    if phases:
        plot_curves(folder.path / "curves.png", _panels(phases))
    return payload


def _fits_in_full(run: RunConfig, config: PretrainedConfig, prompts: list[list[int]]) -> bool:
    """Whether the positions of the model reach to the end of the longest answer with nothing evicted."""
    reach = position_reach(config).positions
    return reach is None or positions_needed(max(map(len, prompts)), run.max_new_tokens, None) <= reach


def _identities(
    run: RunConfig, config: PretrainedConfig, prompts: list[list[int]], examples: list[Example]
) -> dict[str, str]:
    """Digests of what a path does not say: the base model, the data and the adapter that the run starts from."""
    assert run.model is not None
    answers = [example.answer for example in examples]
    weights = None if run.adapter is None else Path(run.adapter) / WEIGHTS
    columns = [[example.columns] if example.columns else [] for example in examples]
    digest = data_identity(
        (prompt, answer, *more) for prompt, answer, more in zip(prompts, answers, columns, strict=True)
    )
    return {**model_identities(config, run.model, weights), "data_digest": digest}


def _save_format(folder: Path, tokenizer: PreTrainedTokenizerBase, run: RunConfig) -> None:
    """Put beside an adapter what `thoughtcache generate` needs to ask as training did."""
    tokenizer.save_pretrained(str(folder))
    save_prompt_format(folder, instruction=run.instruction)


def _panels(phases: dict[str, PhaseResult]) -> list[Panel]:
    panels = []
    for name, key, label in (
        ("distill", "losses", "KL to the full cache (nats per token)"),
        ("grpo", "rewards", "mean reward"),
    ):
        if name in phases:
            points = phases[name][key]
            series = {name: ([float(x) for x, _ in points], [float(y) for _, y in points])}
            panels.append(Panel(title=name, x_label="optimiser step", y_label=label, series=series))
    return panels
