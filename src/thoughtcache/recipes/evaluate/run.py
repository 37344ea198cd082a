"""The run of `thoughtcache eval`: questions, answers that are kept one by one, then table, picture and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.config import ThoughtConfig
from thoughtcache.evaluation.generations import Generation, read_generations
from thoughtcache.evaluation.record_file import read_records
from thoughtcache.evaluation.sampling import Sampling, Task, sample_answers
from thoughtcache.evaluation.scores import score
from thoughtcache.evaluation.thinking.prefixes import sample_prefixes
from thoughtcache.evaluation.thinking.scores import ThinkScores, think_scores
from thoughtcache.evaluation.thinking.selection import Prefix, kept_samples
from thoughtcache.measuring.phase_timer import PhaseTimer, sampling_seconds
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.cutting import TOKENS, check_lengths, cut_answers, sample_to_cut
from thoughtcache.recipes.evaluate.prepare import Prepared, prepare
from thoughtcache.recipes.evaluate.questions import Asked, read_questions
from thoughtcache.recipes.evaluate.report import write_report
from thoughtcache.recipes.evaluate.shared import fill, forget
from thoughtcache.recipes.evaluate.subject import SharedBase, model_name
from thoughtcache.recipes.evaluate.think import PREFIXES, ended_early, wanted_answers
from thoughtcache.recipes.load_adapter import WEIGHTS
from thoughtcache.recipes.run.folder import WRITING_REMEDY, PhaseResult, RunFolder
from thoughtcache.recipes.run.settings import adapter_settings, data_identity, model_identities
from thoughtcache.records import CacheSettings, TokenFilters
from thoughtcache.report.files import writing
from thoughtcache.report.progress import plain_line
from thoughtcache.scale.crew import Crew, open_crew

GENERATIONS = "generations.jsonl"


def run_eval(
    run: EvalRun,
    console: Console | None = None,
    *,
    base: SharedBase | None = None,
    lengths: Sequence[int] = (),
    brief: bool = False,
) -> dict[str, Any]:
    """Ask all questions; returns what is written to results.json.

    Under torchrun every process calls this; they share the answers, and the first one writes and returns the results.

    Args:
        run: the settings.
        console: where progress and the table go.
        base: the base model of several runs; None loads one for this run.
        lengths: smaller bounds on the tokens, and the run's own: answers are sampled once, kept in tokens, and judged
            at each (`cutting.py`); memory is measured then.
        brief: print no table and no paths, for one of several runs.

    Returns:
        What is written to results.json; nothing in processes other than the first.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
        LostProcess: if another process was killed, or failed.
    """
    check_lengths(run, lengths)
    with open_crew() as crew:
        console = (console or Console()) if crew.is_first else Console(quiet=True)
        asked = read_questions(run, partial(plain_line, console))
        folder = _folder(run, asked) if crew.is_first else None
        with (base or SharedBase()).opened(run, console) as opened:
            ready = prepare(run, asked, opened, partial(plain_line, console))
            (model, tokenizer, config), asked, tasks, cache = opened, ready.asked, ready.tasks, ready.cache
            _check_alike(crew, _prompts_digest(tasks))

            def sample(path: Path, resume: bool = False) -> PhaseResult:
                return _sample(run, Path(run.output_dir), model, tokenizer, ready, bool(lengths), crew, console, brief)

            if folder is None:
                if crew.from_first(None):
                    sample(Path(run.output_dir))
                return {}
            said = Console(quiet=True) if brief else console
            phase = _sampled(run, folder, asked, tasks, model, config, cache, crew, said, sample)
        shorter = {
            length: cut_answers(folder.path / GENERATIONS, tokenizer, tasks, length)
            for length in lengths
            if any(length < task.max_new_tokens for task in tasks)
        }
        return _reported(run, folder, asked, tasks, cache, phase, shorter, said)


def _folder(run: EvalRun, asked: list[Asked]) -> RunFolder:
    """The folder of the run; what is known before the model is loaded is compared with what it holds."""
    described = {
        "eval": {name: getattr(run, name) for name in ("dtype", "seed", "system", "top_p", "top_k")},
        "select": _selection(run),
        "stop": list(run.stop),
        "thinking": run.thinking,
        "thinking_options": None if run.thinking_options is None else dict(run.thinking_options),
        "suites": {one.name: _described(one) for one in asked},
    }
    return RunFolder(
        run.output_dir, described, resume=run.resume, overwrite=run.overwrite, free=("source",), growing=("samples",)
    )


def _sampled(
    run: EvalRun,
    folder: RunFolder,
    asked: list[Asked],
    tasks: list[Task],
    model: Any,
    config: ThoughtConfig,
    cache: CacheSettings,
    crew: Crew,
    console: Console,
    sample: Callable[[Path, bool], PhaseResult],
) -> PhaseResult:
    """All answers, sampled now or before; the other processes are told whether there is something to do."""
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
        plain_line(console, f"{one.name}: {len(one.examples)} questions from {one.source}, {samples}")
    if not run.resume:
        # Before the folder becomes this run's own: a kill in between must not leave it an older run's answers.
        for name in (GENERATIONS, PREFIXES, TOKENS):
            forget(folder.path / name)
        for cut_before in folder.path.glob(f"length-*/{GENERATIONS}"):
            forget(cut_before)
    told = False

    def work(path: Path, resume: bool) -> PhaseResult:
        nonlocal told
        told = True
        crew.from_first(True)
        return sample(path, resume)

    with writing(folder.path, WRITING_REMEDY):
        phase = folder.phase("sample", work, num_steps=_num_wanted(run, asked))
    if not told:
        crew.from_first(False)
    return phase


def _check_alike(crew: Crew, digest: str) -> None:
    """Refuse processes that ask other questions than the first one.

    Raises:
        ValueError: if one does.
    """
    for rank, other in enumerate(crew.all(digest)):
        if other != digest:
            raise ValueError(
                f"process {rank} asks other questions than process {crew.rank}; give all of them the same options and "
                "the same data"
            )


def _sample(
    run: EvalRun,
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ready: Prepared,
    keep_tokens: bool,
    crew: Crew,
    console: Console,
    brief: bool,
) -> PhaseResult:
    """Sample what is not in the folder yet."""
    started, tasks = monotonic(), ready.tasks
    sampling = Sampling(
        window=ready.cache.window,
        num_slots=run.batch_size,
        seed=run.seed,
        filters=TokenFilters(top_p=run.top_p, top_k=run.top_k),
        stop_strings=run.stop,
        pack_weights=run.pack_weights,
        thinking=ready.thinking,
        timer=(timer := PhaseTimer(next(model.parameters()).device)),
    )
    if keep_tokens:
        last = sample_to_cut(folder / GENERATIONS, model, tokenizer, tasks, sampling, crew, console, brief=brief)
        assert last["seconds"] is not None
        return {"last_call": last, "phases": sampling_seconds(timer.flush(), last["seconds"])}
    selection, num_tokens = run.selection, 0
    prefixes: list[Prefix] = []
    if selection is not None:

        def begin(wanted: list[Task], keep: Callable[[Prefix], None]) -> None:
            sample_prefixes(model, tokenizer, wanted, sampling, selection, keep)

        begun = fill(
            folder / PREFIXES, Prefix, tasks, begin, what="beginnings", crew=crew, console=console, brief=brief
        )
        prefixes = [begun.found[task.key] for task in tasks]
        num_tokens = sum(len(begun.found[key].token_ids) for key in begun.made)
        tasks = wanted_answers(tasks, prefixes, selection)

    def finish(wanted: list[Task], keep: Callable[[Generation], None]) -> None:
        over = {generation.key: generation for generation in ended_early(wanted, prefixes, tokenizer)}
        for generation in over.values():
            keep(generation)
        to_sample = [task for task in wanted if task.key not in over]
        if to_sample:
            sample_answers(model, tokenizer, to_sample, sampling, keep)

    answers = fill(
        folder / GENERATIONS,
        Generation,
        tasks,
        finish,
        what="answers",
        crew=crew,
        console=console,
        tokens=lambda answer: answer.num_tokens,
        brief=brief,
    )
    lengths = {task.key: len(task.begun) for task in tasks}
    num_tokens += sum(answers.found[key].num_tokens - lengths[key] for key in answers.made)
    seconds = monotonic() - started
    return {
        "last_call": {"answers": len(answers.made), "tokens": num_tokens, "seconds": seconds},
        "phases": sampling_seconds(timer.flush(), seconds),
    }


def _reported(
    run: EvalRun,
    folder: RunFolder,
    asked: list[Asked],
    tasks: list[Task],
    cache: CacheSettings,
    phase: PhaseResult,
    shorter: Mapping[int, Sequence[Generation]],
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
    by_length = {
        length: {one.name: score([answer for answer in answers if answer.suite == one.name]) for one in asked}
        for length, answers in shorter.items()
    }
    with writing(folder.path, WRITING_REMEDY):
        return write_report(folder.path, run, asked, scores, cache, phase, console, think, by_length)


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
        "eviction_budgets": _as_lists(cache.head_budgets or cache.budgets),
        "positions": cache.positions,
    }


def _as_lists(budgets: tuple[Any, ...] | None) -> list[Any] | None:
    """Budgets by layer, or by layer and head, as JSON data."""
    return None if budgets is None else [list(size) if isinstance(size, tuple) else size for size in budgets]


def _prompts_digest(tasks: list[Task]) -> str:
    """A digest of every prompt as the model sees it: tokenizer, template and instruction."""
    return data_identity(task.prompt_ids for task in tasks if task.sample == 0)
