"""What a run would do, without doing it: its first prompts as the model will read them, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.console import Console
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from thoughtcache.config import ThoughtConfig
from thoughtcache.planning.plan import make_plan
from thoughtcache.recipes.plan.fit import planned_phases
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.report.plan import print_plans
from thoughtcache.report.progress import plain_line
from thoughtcache.tasks.example import Example

NUM_SHOWN = 3
"""Prompts that are shown."""
TITLES = {"distill": "distillation", "grpo": "GRPO"}


def print_prompts(
    prompts: Sequence[list[int]], examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, console: Console
) -> list[str]:
    """Print the first prompts, special tokens included, with their references, and how long all are.

    Args:
        prompts: token ids of every prompt, at least one.
        examples: their questions.
        tokenizer: tokenizer of the model.
        console: where they go.

    Returns:
        The texts that were printed.
    """
    shown = [str(tokenizer.decode(prompt, skip_special_tokens=False)) for prompt in prompts[:NUM_SHOWN]]
    for text, prompt, example in zip(shown, prompts, examples, strict=False):
        plain_line(console, f"--- {example.identifier}: {len(prompt)} tokens, answer {example.answer!r}")
        plain_line(console, text)
    lengths = [len(prompt) for prompt in prompts]
    plain_line(
        console,
        f"--- {len(prompts)} questions to train on, prompts of {min(lengths)} to {max(lengths)} tokens, half of them "
        f"at most {median(lengths):g}",
    )
    return shown


def print_run_plan(
    run: RunConfig,
    thought: ThoughtConfig,
    model: PretrainedConfig,
    prompts: Sequence[list[int]],
    available_bytes: int | None,
    console: Console,
) -> dict[str, int]:
    """Print where the memory of every phase goes; returns its bytes at the highest point, by phase.

    Args:
        run: the run, nothing of which is left to the planner.
        thought: the adapter.
        model: configuration of the base.
        prompts: token ids of every prompt; the longest one counts.
        available_bytes: what the device may be filled with; None if it is not known.
        console: where it goes.
    """
    if run.thinking is not None:
        return {}
    plans: dict[str, Any] = {
        TITLES[phase.objective]: make_plan(phase) for phase in planned_phases(run, thought, model, prompts)
    }
    print_plans(plans, available_bytes, "memory by phase", console)
    return {name: plan.total_bytes for name, plan in plans.items()}
