"""The job on a model and data of the user: cache distillation, then GRPO, then a saved adapter.

Same stages and same trainers as the embedded job; only the model, the data and the reward differ.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft import load_peft_weights, set_peft_model_state_dict
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.config import TEACHER_BATCHES, RunConfig, ThoughtConfig
from thoughtcache.policy.options import ReplayOptions
from thoughtcache.recipes.builders import learner_options, train_grpo
from thoughtcache.recipes.fit import refuse_what_does_not_fit
from thoughtcache.recipes.load_model import load_base, load_tokenizer
from thoughtcache.recipes.prompts import encode_examples
from thoughtcache.recipes.run_folder import PhaseResult, RunFolder
from thoughtcache.recipes.run_lengths import check_lengths
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.trainer_progress import RichProgressCallback
from thoughtcache.tasks.chat import plain_prompt
from thoughtcache.tasks.datasets import MathExample, load_prompts


def run_real_model(run: RunConfig, thought: ThoughtConfig, console: Console | None = None) -> dict[str, Any]:
    """Distil and train with GRPO; returns what is written to results.json.

    Args:
        run: the settings; `model` and `dataset` are needed.
        thought: the adapter and its cache.
        console: where progress goes.

    Raises:
        ValueError, OSError: for input that cannot be used; nothing is overwritten then.
    """
    assert run.model is not None
    assert run.dataset is not None
    console = console or Console()
    ReplayOptions(**learner_options(run))
    described = {**asdict(run), "thought": _plain(thought)}
    for transient in ("resume", "overwrite", "force"):
        described.pop(transient)
    folder = RunFolder(run.output_dir, described, resume=run.resume, overwrite=run.overwrite)
    report = partial(console.print, markup=False, soft_wrap=True)
    examples = load_prompts(
        run.dataset,
        split=run.split,
        prompt_column=run.prompt_column,
        answer_column=run.answer_column,
        limit=run.limit,
        need_answers=run.grpo_steps > 0,
        bad_rows=run.bad_rows,
        report=report,
    )
    config, tokenizer = load_tokenizer(run.model)
    examples, prompts = encode_examples(
        tokenizer, examples, instruction=run.instruction or None, bad_rows=run.bad_rows, report=report
    )
    check_lengths(prompts, run, thought, config)
    refuse_what_does_not_fit(run, thought, config, prompts, console)
    base = load_base(run.model, run.dtype, run.load_in_4bit)
    torch.manual_seed(run.seed)
    model: Any = peft.get_peft_model(base, thought)
    phases: dict[str, PhaseResult] = {}
    if run.distill_steps:
        phases["distill"] = folder.phase(
            "distill", lambda path, resume: _distill(run, model, prompts, path, resume, console)
        )
        _load_finished(model, folder.path / "distill" / "adapter")
    if run.grpo_steps:
        phases["grpo"] = folder.phase(
            "grpo", lambda path, resume: _grpo(run, model, tokenizer, examples, path, resume, console)
        )
        _load_finished(model, folder.path / "grpo" / "adapter")
    model.save_pretrained(str(folder.path / "adapter"))
    tokenizer.save_pretrained(str(folder.path / "adapter"))
    payload = {"run": described, "environment": environment(), "phases": phases}
    write_results(folder.path / "results.json", payload)
    if phases:
        plot_curves(folder.path / "curves.png", _panels(phases))
    console.print(f"adapter: {folder.path / 'adapter'}\nresults: {folder.path / 'results.json'}", soft_wrap=True)
    return payload


def _load_finished(model: Any, folder: Path) -> None:
    """Put the adapter of a finished phase into the model, also when the phase ran in an earlier call."""
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def _distill(
    run: RunConfig, model: Any, prompts: list[list[int]], folder: Path, resume: bool, console: Console
) -> PhaseResult:
    from thoughtcache.train.distill import distill, sample_teacher
    from thoughtcache.train.distill_config import DistillConfig

    config = DistillConfig(
        output_dir=str(folder),
        num_steps=run.distill_steps,
        batch_size=run.distill_batch_size,
        learning_rate=run.distill_learning_rate,
        warmup_steps=min(20, run.distill_steps // 5),
        max_new_tokens=run.max_new_tokens,
        sample_batch_size=run.distill_batch_size * TEACHER_BATCHES,
        pack_weights=run.pack_weights,
        seed=run.seed,
        save_every=run.save_every,
        log_every=1,
        resume=resume,
        **learner_options(run),
    )
    needed = min(len(prompts), run.distill_steps * run.distill_batch_size)
    started = time.perf_counter()
    with progress_bar("teacher samples", needed, console=console) as advance:
        samples = sample_teacher(model, prompts[:needed], config, advance)
    sampling_seconds = time.perf_counter() - started
    bar = RichProgressCallback(description="distillation", console=console)
    result = distill(model, (), config, samples=samples, callbacks=[bar])
    model.save_pretrained(str(folder / "adapter"))
    return {
        "losses": [[h["step"], h["loss"]] for h in result.history if "loss" in h],
        "seconds": {"rollout": sampling_seconds, "distil": result.elapsed_seconds},
    }


def _grpo(
    run: RunConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[MathExample],
    folder: Path,
    resume: bool,
    console: Console,
) -> PhaseResult:
    from thoughtcache.train.rewards import math_correctness

    started = time.perf_counter()
    logged = train_grpo(
        model,
        tokenizer,
        [_example(example, tokenizer, run.instruction) for example in examples],
        math_correctness,
        run,
        folder=folder,
        resume=resume,
        title="GRPO",
        console=console,
        max_steps=run.grpo_steps,
        per_device_train_batch_size=run.grpo_batch_size,
        num_generations=run.group_size,
        max_completion_length=run.max_new_tokens,
        learning_rate=run.grpo_learning_rate,
        beta=run.beta,
        reuse_rollout=run.reuse_rollout,
        pack_weights=run.pack_weights,
        **learner_options(run),
    )
    return {
        "rewards": [[record["step"], record["reward"]] for record in logged],
        "log": logged,
        "seconds": {"grpo": time.perf_counter() - started},
    }


def _example(example: MathExample, tokenizer: PreTrainedTokenizerBase, instruction: str) -> dict[str, Any]:
    """The row that TRL sees; the same prompt tokens as `encode_prompt` gives."""
    messages = [dict(message) for message in example.prompt]
    if instruction:
        messages[-1]["content"] += f"\n\n{instruction}"
    prompt = messages if tokenizer.chat_template else plain_prompt(messages)
    return {"prompt": prompt, "answer": example.answer}


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


def _plain(config: ThoughtConfig) -> dict[str, Any]:
    """The adapter's settings as JSON data."""
    names = (
        "r", "num_global_tokens", "lora_alpha", "window", "evict_fraction", "eviction", "initial_state", "absorb",
        "state_rule", "state_norm", "write_scale",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names}
