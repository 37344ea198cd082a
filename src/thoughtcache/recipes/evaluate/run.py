"""The run of `thoughtcache eval`: questions, answers that are kept one by one, then table, picture and numbers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.config import ThoughtConfig
from thoughtcache.evaluation.generations import Generation, read_generations
from thoughtcache.evaluation.record_file import RecordFile, read_records
from thoughtcache.evaluation.sampling import Sampling, Task, sample_answers
from thoughtcache.evaluation.scores import score
from thoughtcache.evaluation.thinking.scores import ThinkScores, think_scores
from thoughtcache.evaluation.thinking.selection import Prefix, kept_samples
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.questions import Asked, read_questions, tasks_of
from thoughtcache.recipes.evaluate.report import write_report
from thoughtcache.recipes.evaluate.subject import model_name, opened
from thoughtcache.recipes.evaluate.think import PREFIXES, begin_answers, ended_early, wanted_answers
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
        "select": _selection(run),
        "stop": list(run.stop),
        "suites": {one.name: _described(one) for one in asked},
    }
    folder = RunFolder(
        run.output_dir, described, resume=run.resume, overwrite=run.overwrite, free=("source",), growing=("samples",)
    )
    with opened(run) as (model, tokenizer, config):
        tasks, asked = tasks_of(run, asked, tokenizer, report)
        cache = config.resolve_window(max(len(task.prompt_ids) for task in tasks), run.window)
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
            for name in (GENERATIONS, PREFIXES):
                (folder.path / name).unlink(missing_ok=True)
        with writing(folder.path, WRITING_REMEDY):
            phase = folder.phase(
                "sample",
                lambda *_: _sample(run, folder.path, model, tokenizer, tasks, cache, console),
                num_steps=_num_wanted(run, asked),
            )
    return _reported(run, folder, asked, tasks, config, cache, phase, console)


def _sample(
    run: EvalRun,
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[Task],
    cache: CacheSettings,
    console: Console,
) -> PhaseResult:
    """Sample what is not in the folder yet."""
    started = monotonic()
    sampling = Sampling(
        window=cache.window,
        num_slots=run.batch_size,
        seed=run.seed,
        filters=TokenFilters(top_p=run.top_p, top_k=run.top_k),
        stop_strings=run.stop,
        pack_weights=run.pack_weights,
    )
    selection, num_tokens = run.selection, 0
    prefixes: list[Prefix] = []
    if selection is not None:
        prefixes, num_tokens = begin_answers(folder / PREFIXES, model, tokenizer, tasks, sampling, selection, console)
        tasks = wanted_answers(tasks, prefixes, selection)
    with RecordFile(folder / GENERATIONS, Generation) as kept:
        there = {generation.key for generation in kept.found}
        missing = [task for task in tasks if task.key not in there]
        if there:
            plain_line(console, f"{len(tasks) - len(missing)} of {len(tasks)} answers are there")
        begun = {task.key: len(task.begun) for task in missing}
        with progress_bar("answers", len(missing), console=console) as advance:

            def keep(generation: Generation) -> None:
                nonlocal num_tokens
                kept.add(generation)
                num_tokens += generation.num_tokens - begun.pop(generation.key)
                advance()

            if prefixes:
                for generation in ended_early(missing, prefixes, tokenizer):
                    keep(generation)
            to_sample = [task for task in missing if task.key in begun]
            if to_sample:
                sample_answers(model, tokenizer, to_sample, sampling, keep)
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
    all_tasks, selection, prefixes = tasks, run.selection, {}
    if selection is not None:
        prefixes = {prefix.key: prefix for prefix in read_records(folder.path / PREFIXES, Prefix)}
        if all(task.key in prefixes for task in tasks):
            tasks = wanted_answers(tasks, [prefixes[task.key] for task in tasks], selection)
    lost = [task for task in tasks if task.key not in found]
    if lost:
        raise ValueError(
            f"{folder.path / GENERATIONS} lacks {len(lost)} answers of a run that was finished, first "
            f"{lost[0].example.identifier}; delete {folder.path / 'phases' / 'sample.json'} and add --resume"
        )
    scores = {one.name: score([found[task.key] for task in tasks if task.suite == one.name]) for one in asked}
    think: dict[str, ThinkScores] = {}
    if selection is not None:
        for one in asked:
            own = [prefixes[task.key] for task in all_tasks if task.suite == one.name]
            answers = [found[task.key] for task in tasks if task.suite == one.name]
            lengths = {task.example.identifier: len(task.prompt_ids) for task in all_tasks}
            think[one.name] = think_scores(own, answers, kept_samples(own, selection), lengths)
    with writing(folder.path, WRITING_REMEDY):
        return write_report(folder.path, run, asked, scores, cache, phase["last_call"], console, think)


def _selection(run: EvalRun) -> dict[str, Any] | None:
    """What decides which answers are chosen, as JSON data; whether the others are finished may change."""
    if run.selection is None:
        return None
    return {name: value for name, value in asdict(run.selection).items() if name != "finish_rest"}


def _num_wanted(run: EvalRun, asked: list[Asked]) -> int:
    """Answers that are finished."""
    selection = run.selection
    finishes_all = selection is None or selection.finish_rest
    return sum(
        len(one.examples) * (one.samples if finishes_all or selection is None else selection.num_kept(one.samples))
        for one in asked
    )


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
