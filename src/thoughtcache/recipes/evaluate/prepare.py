"""What is sampled, under which cache: known with the model, and looked at before any answer is sampled or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from thoughtcache.adapter.positions import PositionReach, position_reach, positions_needed
from thoughtcache.chains.table import make_thinking
from thoughtcache.chains.thinking import Thinking
from thoughtcache.config import ThoughtConfig
from thoughtcache.evaluation.sampling import Task
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.questions import Asked, tasks_of
from thoughtcache.records import CacheSettings
from thoughtcache.sampler.going_on import check_goes_on
from thoughtcache.sampler.sequence import check_leaves_last
from thoughtcache.tasks.data.bad_rows import Report

SHORTER = "lower max_new_tokens, leave out long questions or the suite"
ROLLING = 'use positions="rolling" with a window'


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedies:
    """What a command can change where positions do not suffice.

    Attributes:
        shorter: how answers become shorter.
        rolling: how positions roll inside a window.
    """

    shorter: str = SHORTER
    rolling: str = ROLLING


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What is sampled.

    Attributes:
        asked: the suites, without the rows that were dropped.
        tasks: the answers that are wanted.
        cache: the cache that they are sampled under.
        thinking: the links that are answered in, or None for one context.
    """

    asked: list[Asked]
    tasks: list[Task]
    cache: CacheSettings
    thinking: Thinking | None


def prepare(
    run: EvalRun,
    asked: list[Asked],
    opened: tuple[Any, PreTrainedTokenizerBase, ThoughtConfig],
    report: Report,
    *,
    remedies: Remedies | None = None,
) -> Prepared:
    """Make prompts, and see whether the model can answer them.

    Args:
        run: the settings.
        asked: the questions.
        opened: model, tokenizer and settings, as of `SharedBase.opened`.
        report: gets a sentence where rows are left out.
        remedies: what the command can change; those of a run with a single cache if left out.

    Raises:
        ValueError: if the chat template refuses a question, links are never reached or cannot keep what was written
            under the cache, or the model lacks positions.
    """
    model, tokenizer, config = opened
    tasks, asked = tasks_of(run, asked, tokenizer, report)
    cache = config.resolve_window(max(len(task.prompt_ids) for task in tasks), run.window)
    thinking = None
    if run.thinking is not None:
        thinking = make_thinking(run.thinking, run.thinking_options, tokenizer)
        if thinking.keeps_written:
            check_goes_on(cache)
        if thinking.leaves_last:
            check_leaves_last(cache)
        for task in tasks:
            thinking.check(len(task.prompt_ids), task.max_new_tokens)
    reach = position_reach(find_tuner(model).model.config)
    for task in tasks:
        _check_positions(task, thinking, cache.rolling_window, reach, remedies or Remedies())
    return Prepared(asked=asked, tasks=tasks, cache=cache, thinking=thinking)


def _check_positions(
    task: Task, thinking: Thinking | None, rolling_window: int | None, reach: PositionReach, remedies: Remedies
) -> None:
    """Refuse an answer that could come to positions beyond the reach, in one context or in a link."""
    prompt, most = len(task.prompt_ids), task.max_new_tokens
    for before, thoughts in [(prompt, most)] if thinking is None else thinking.farthest(prompt, most):
        needed = positions_needed(before, thoughts, rolling_window)
        if reach.positions is None or needed <= reach.positions:
            continue
        held = "" if rolling_window is None else f", of which the window holds {rolling_window}"
        link = "" if thinking is None else " of a chain" if thinking.keeps_written else " of a link"
        changes = [remedies.shorter]
        if thinking is not None:
            changes.append(f"lower the thinking options {', '.join(thinking.bounds_of_links)}")
        if rolling_window is not None:
            changes.append("lower the window")
        elif not reach.varies and not (thinking is not None and thinking.keeps_written):
            changes.append(remedies.rolling)
        raise ValueError(
            f"suite {task.suite}: {before} tokens before the answer and up to {thoughts} tokens{link}{held}, take "
            f"{needed} positions, more than the {reach.described()}; {', '.join(changes)}, or {reach.other_scaling}"
        )
