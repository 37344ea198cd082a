"""The beginnings of answers with their deep-thinking tokens, sampled group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from thoughtcache.evaluation.sampling import Sampling, Task, sample_rollouts
from thoughtcache.evaluation.thinking.deep_tokens import deep_tokens
from thoughtcache.evaluation.thinking.selection import Prefix, ThinkAtN
from thoughtcache.evaluation.token_answers import token_answer
from thoughtcache.records import Rollout


def sample_prefixes(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sampling: Sampling,
    selection: ThinkAtN,
    report: Callable[[Prefix], None],
) -> None:
    """Begin answers, as many at once as there are slots, and look at their layers in one more pass over each group.

    Args:
        model: see `sample_answers`, as for the tokenizer.
        tokenizer: its tokenizer.
        tasks: the answers that are begun.
        sampling: how they are sampled.
        selection: how long a beginning is, and what a deep-thinking token is.
        report: gets every beginning.
    """
    for start in range(0, len(tasks), sampling.num_slots):
        group = [replace(t, max_new_tokens=selection.prefix_tokens) for t in tasks[start : start + sampling.num_slots]]
        found = _rollouts(model, tokenizer, group, sampling)
        deep = deep_tokens(model, [rollout for _, rollout in found], selection.definition)
        for (task, rollout), flags in zip(found, deep, strict=True):
            report(Prefix(**asdict(token_answer(task, rollout)), num_deep=sum(flags)))


def _rollouts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], sampling: Sampling
) -> list[tuple[Task, Rollout]]:
    found: list[tuple[Task, Rollout]] = []
    sample_rollouts(model, tokenizer, tasks, sampling, lambda task, rollout: found.append((task, rollout)))
    return found
