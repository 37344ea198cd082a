"""`thoughtcache eval --select think@n`: answers are begun and looked at, and some of them are finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.evaluation.generations import Generation
from thoughtcache.evaluation.sampling import Task
from thoughtcache.evaluation.thinking.scores import ThinkScores
from thoughtcache.evaluation.thinking.selection import Prefix, ThinkAtN, kept_samples
from thoughtcache.evaluation.token_answers import judged_answer
from thoughtcache.recipes.evaluate.table import percent, points
from thoughtcache.report.progress import plain_line
from thoughtcache.report.tables import print_cells

PREFIXES = "prefixes.jsonl"
HEADER = (
    "suite",
    "answers",
    "think@n (95 %)",
    "maj@n (95 %)",
    "tokens",
    "of maj@n",
    "deep",
    "kept right",
    "rest right",
)


def wanted_answers(tasks: Sequence[Task], prefixes: Sequence[Prefix], selection: ThinkAtN) -> list[Task]:
    """The answers that are finished, each with its beginning.

    Args:
        tasks: all answers.
        prefixes: their beginnings, in the same order.
        selection: which are finished.
    """
    chosen = {task.key for task in tasks} if selection.finish_rest else kept_samples(prefixes, selection)
    pairs = zip(tasks, prefixes, strict=True)
    return [replace(task, begun=tuple(prefix.token_ids)) for task, prefix in pairs if task.key in chosen]


def ended_early(
    tasks: Sequence[Task], prefixes: Sequence[Prefix], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Generation]:
    """The answers among these that ended within their beginning, judged.

    Args:
        tasks: answers that are wanted.
        prefixes: beginnings of these and others.
        tokenizer: tokenizer of the model.
    """
    ended = {prefix.key: prefix for prefix in prefixes if prefix.finish_reason == "stop"}
    for task in tasks:
        prefix = ended.get(task.key)
        if prefix is not None:
            yield judged_answer(task, prefix, tokenizer)


def print_think(scores: dict[str, ThinkScores], console: Console) -> tuple[Sequence[str], list[list[str]]]:
    """Print the table of the selection; returns its header and rows."""
    rows = [_cells(name, own) for name, own in scores.items()]
    print_cells("think@n: the answers that think deepest are finished, and vote", HEADER, rows, console)
    for name, own in scores.items():
        estimate = " (estimated from the finished ones)" if own.is_estimate else ""
        plain_line(
            console,
            f"{name}, tokens per question: {own.tokens:,.0f} sampled for think@n, {own.majority_tokens:,.0f} for maj@n"
            f"{estimate}; passes over known tokens: {own.tokens_again:,.0f} to go on from beginnings, "
            f"{own.tokens_looked_at:,.0f} to look at the layers",
        )
    return HEADER, rows


def _cells(name: str, own: ThinkScores) -> list[str]:
    return [
        name,
        f"{own.num_kept} of {own.num_samples}",
        percent(own.accuracy),
        "-" if own.majority is None else percent(own.majority),
        "-" if own.minus_majority is None else points(own.minus_majority),
        f"{own.tokens:,.0f}",
        f"{'about ' if own.is_estimate else ''}{100 * own.tokens / own.majority_tokens:.0f} %",
        f"{100 * own.ratio:.1f} %",
        percent(own.kept_right),
        "-" if own.rest_right is None else percent(own.rest_right),
    ]
