"""The run of `thoughtcache eval`: questions, answers that are kept one by one, then table, picture and numbers."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.chains.table import make_thinking
from thoughtcache.chains.thinking import Thinking
from thoughtcache.config import ThoughtConfig
from thoughtcache.evaluation.generations import Generation, GenerationFile, read_generations
from thoughtcache.evaluation.sampling import Task, sample_answers
from thoughtcache.evaluation.scores import score
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.questions import Asked, read_questions, tasks_of
from thoughtcache.recipes.evaluate.report import write_report
from thoughtcache.recipes.evaluate.subject import model_name, opened
from thoughtcache.recipes.load_adapter import WEIGHTS
from thoughtcache.recipes.run.folder import WRITING_REMEDY, PhaseResult, RunFolder
from thoughtcache.recipes.run.settings import adapter_settings, data_identity, model_identities
from thoughtcache.records import CacheSettings, TokenFilters
from thoughtcache.report.files import writing
from thoughtcache.report.progress import plain_line, progress_bar

GENERATIONS = "generations.jsonl"


def run_eval(run: EvalRun, console: Console | None = None) -> dict[str, Any]:
    """Ask all questions; returns what is written to results.json.

    Args:
        run: the settings.
        console: where progress and the table go.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
    """
    console = console or Console()

    def report(text: str) -> None:
        plain_line(console, text)

    asked = read_questions(run, report)
    described = {
        "eval": {name: getattr(run, name) for name in ("dtype", "seed", "system", "top_p", "top_k")},
        "stop": list(run.stop),
        "thinking": run.thinking,
        "thinking_options": None if run.thinking_options is None else dict(run.thinking_options),
        "suites": {one.name: _described(one) for one in asked},
    }
    folder = RunFolder(
        run.output_dir, described, resume=run.resume, overwrite=run.overwrite, free=("source",), growing=("samples",)
    )
    with opened(run) as (model, tokenizer, config):
        tasks, asked = tasks_of(run, asked, tokenizer, report)
        cache = config.resolve_window(max(len(task.prompt_ids) for task in tasks), run.window)
        thinking = None
        if run.thinking is not None:
            thinking = make_thinking(run.thinking, run.thinking_options or {}, tokenizer)
            for task in tasks:
                thinking.check(len(task.prompt_ids), task.max_new_tokens)
        weights = None if run.adapter is None else Path(run.adapter) / WEIGHTS
        folder.describe(
            {
                "prompts_digest": _prompts_digest(tasks),
                "adapter": None if run.adapter is None else adapter_settings(config),
                "cache": _cache(cache),
                **model_identities(find_tuner(model).model.config, model_name(run), weights),
            }
        )
        for one in asked:
            samples = f"{one.samples} samples at temperature {one.temperature:g}" if one.temperature else "greedy"
            report(f"{one.name}: {len(one.examples)} questions from {one.source}, {samples}")
        if not run.resume:
            # Before the folder becomes this run's own: a kill in between must not leave it an older run's answers.
            (folder.path / GENERATIONS).unlink(missing_ok=True)
        with writing(folder.path, WRITING_REMEDY):
            phase = folder.phase(
                "sample",
                lambda *_: _sample(run, folder.path / GENERATIONS, model, tokenizer, tasks, cache, thinking, console),
                num_steps=len(tasks),
            )
    return _reported(run, folder, asked, tasks, config, cache, phase, console)


def _sample(
    run: EvalRun,
    file: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[Task],
    cache: CacheSettings,
    thinking: Thinking | None,
    console: Console,
) -> PhaseResult:
    """Sample what is not in the file yet."""
    started = monotonic()
    with GenerationFile(file) as kept:
        there = {generation.key for generation in kept.found}
        missing = [task for task in tasks if task.key not in there]
        if there:
            plain_line(console, f"{len(tasks) - len(missing)} of {len(tasks)} answers are there")
        num_tokens = 0
        with progress_bar("answers", len(missing), console=console) as advance:

            def keep(generation: Generation) -> None:
                nonlocal num_tokens
                kept.add(generation)
                num_tokens += generation.num_tokens
                advance()

            if missing:
                sample_answers(
                    model,
                    tokenizer,
                    missing,
                    window=cache.window,
                    num_slots=run.batch_size,
                    seed=run.seed,
                    filters=TokenFilters(top_p=run.top_p, top_k=run.top_k),
                    stop_strings=run.stop,
                    pack_weights=run.pack_weights,
                    report=keep,
                    thinking=thinking,
                )
    return {"last_call": {"answers": len(missing), "tokens": num_tokens, "seconds": monotonic() - started}}


def _reported(
    run: EvalRun,
    folder: RunFolder,
    asked: list[Asked],
    tasks: list[Task],
    config: ThoughtConfig,
    cache: CacheSettings,
    phase: PhaseResult,
    console: Console,
) -> dict[str, Any]:
    found = {generation.key: generation for generation in read_generations(folder.path / GENERATIONS)}
    lost = [task for task in tasks if task.key not in found]
    if lost:
        raise ValueError(
            f"{folder.path / GENERATIONS} lacks {len(lost)} answers of a run that was finished, first "
            f"{lost[0].example.identifier}; delete {folder.path / 'phases' / 'sample.json'} and add --resume"
        )
    scores = {one.name: score([found[task.key] for task in tasks if task.suite == one.name]) for one in asked}
    with writing(folder.path, WRITING_REMEDY):
        return write_report(folder.path, run, asked, scores, cache, phase["last_call"], console)


def _described(one: Asked) -> dict[str, Any]:
    return {
        "source": one.source,
        "samples": one.samples,
        "temperature": one.temperature,
        "max_new_tokens": one.max_new_tokens,
        "instruction": one.instruction,
        "data_digest": data_identity(one.rows()),
    }


def _cache(cache: CacheSettings) -> dict[str, Any]:
    """The cache as JSON data."""
    return {
        "window": cache.window,
        "num_evicted": cache.num_evicted,
        "eviction": None if cache.window is None else cache.eviction,
        "eviction_options": {} if cache.window is None else dict(cache.eviction_options),
        "positions": cache.positions,
    }


def _prompts_digest(tasks: list[Task]) -> str:
    """A digest of every prompt as the model sees it: tokenizer, template and instruction."""
    return data_identity(task.prompt_ids for task in tasks if task.sample == 0)
