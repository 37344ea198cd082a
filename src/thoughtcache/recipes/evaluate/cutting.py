"""One run for several bounds on the tokens: answers are kept in tokens, and judged whole and cut at each bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.evaluation.generations import Generation
from thoughtcache.evaluation.record_file import read_records
from thoughtcache.evaluation.sampling import Sampling, Task
from thoughtcache.evaluation.token_answers import TokenAnswer, cut, judged_answer, sample_token_answers
from thoughtcache.measuring.peak_memory import peak_memory_of
from thoughtcache.recipes.evaluate.config import EvalRun, suite_of
from thoughtcache.recipes.evaluate.shared import fill
from thoughtcache.scale.crew import Crew

TOKENS = "tokens.jsonl"
Key = tuple[str, int]


def check_lengths(run: EvalRun, lengths: Sequence[int]) -> None:
    """Refuse bounds at which answers cannot be cut.

    Args:
        run: the settings.
        lengths: bounds on the tokens of an answer, none or several.

    Raises:
        ValueError: for a bound that is out of range, or answers of which a beginning is not the answer under a bound.
    """
    if not lengths:
        return
    for name in ("thinking", "select"):
        value = getattr(run, name)
        if value is not None:
            raise ValueError(
                f"{name}={value} cannot be cut at several lengths: what it gives under a smaller bound is not the "
                "beginning of what it gives under a larger one; leave it out, or run one length at a time"
            )
    for name, _ in run.named_paths():
        longest = run.asked(suite_of(name))[2]
        for length in lengths:
            if not 1 <= length <= longest:
                raise ValueError(f"lengths must be 1 to max_new_tokens={longest} tokens, got {length}; suite {name}")


def folder_of_length(folder: Path, length: int) -> Path:
    """Where the answers that are cut at a length are."""
    return folder / f"length-{length}"


def sample_to_cut(
    file: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sampling: Sampling,
    crew: Crew,
    console: Console,
    *,
    brief: bool = False,
) -> dict[str, int | float | None]:
    """Sample what is not there yet, keep its tokens, and judge it whole.

    Args:
        file: file of the judged answers; tokens stand beside it.
        model: see `sample_answers`, as for what follows.
        tokenizer: its tokenizer.
        tasks: the answers that are wanted.
        sampling: how they are sampled.
        crew: the processes.
        console: where the progress goes.
        brief: see `PhaseLine`.

    Returns:
        answers, tokens: how many were sampled by this call, in all processes.
        seconds: of sampling, in this process.
        peak_memory_mib: peak over what was in use before, which the weights are, in this process; see `PeakMemory`.
            None where it cannot be measured.
    """
    started = monotonic()
    memory = peak_memory_of(next(model.parameters()).device)
    with memory or nullcontext():
        kept = fill(
            file.with_name(TOKENS),
            TokenAnswer,
            tasks,
            lambda wanted, keep: sample_token_answers(model, tokenizer, wanted, sampling, keep),
            what="answers",
            crew=crew,
            console=console,
            tokens=lambda answer: len(answer.token_ids),
            brief=brief,
        )
    seconds = monotonic() - started
    fill(
        file,
        Generation,
        tasks,
        _verdicts(kept.found, tokenizer),
        what="verdicts",
        crew=crew,
        console=console,
        brief=True,
    )
    return {
        "answers": len(kept.made),
        "tokens": sum(len(kept.found[key].token_ids) for key in kept.made),
        "seconds": seconds,
        "peak_memory_mib": None if memory is None else memory.peak_mib,
    }


def cut_answers(
    file: Path,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    length: int,
) -> list[Generation]:
    """The answers under a smaller bound, judged; what is not there yet is judged now and kept in a folder of its own.

    Args:
        file: file of the judged answers; tokens stand beside it.
        tokenizer: the tokenizer of the model.
        tasks: the answers.
        length: the bound.

    Raises:
        ValueError: if the tokens of an answer are not there.
    """
    found = {one.key: one for one in read_records(file.with_name(TOKENS), TokenAnswer)}
    lost = [task for task in tasks if task.key not in found]
    if lost:
        raise ValueError(
            f"{file.with_name(TOKENS)} lacks {len(lost)} answers, first {lost[0].example.identifier}; start anew with "
            "--overwrite"
        )
    shorter = {key: cut(answer, length) for key, answer in found.items()}
    own = folder_of_length(file.parent, length) / file.name
    judge, quiet = _verdicts(shorter, tokenizer), Console(quiet=True)
    judged = fill(own, Generation, tasks, judge, what="verdicts", crew=Crew(), console=quiet)
    return [judged.found[task.key] for task in tasks]


def _verdicts(
    answers: Mapping[Key, TokenAnswer], tokenizer: PreTrainedTokenizerBase
) -> Callable[[list[Task], Callable[[Generation], None]], None]:
    def judge(wanted: list[Task], keep: Callable[[Generation], None]) -> None:
        for task in wanted:
            keep(judged_answer(task, answers[task.key], tokenizer))

    return judge
