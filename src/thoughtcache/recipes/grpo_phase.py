"""GRPO as a phase of a run on the user's model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.chains.folding import StepFolding
from thoughtcache.chains.table import make_thinking
from thoughtcache.chains.thinking import Thinking
from thoughtcache.ends import stop_token_ids
from thoughtcache.learner.options import learner_options
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.builders import train_grpo
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.folder import PhaseResult
from thoughtcache.recipes.run.own_rewards import load_reward
from thoughtcache.recipes.run.reward_guard import Reward
from thoughtcache.recipes.run.trouble import troubles
from thoughtcache.report.phases import TIME_TABLE
from thoughtcache.report.progress import plain_line
from thoughtcache.tasks.chat import plain_prompt
from thoughtcache.tasks.example import Example
from thoughtcache.train.trainer_options.schedules import schedule

TAKEN = frozenset(
    {
        "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric",
        "environments", "image", "images", "rollout_index",
    }
)  # fmt: skip
"""Names that columns of a data set may not have where TRL calls rewards; such columns are left out."""


def grpo_phase(
    run: RunConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    folder: Path,
    resume: bool,
    console: Console,
    title: str = "",
) -> PhaseResult:
    """Train `model` in place; returns the rewards by step, the log and the seconds.

    Args:
        run: the settings.
        model: adapted model.
        tokenizer: its tokenizer.
        examples: questions with answers.
        folder: folder for checkpoints and the adapter.
        resume: whether the folder may hold checkpoints to go on from.
        console: where progress goes.
        title: text in front of the line of its progress.
    """
    from thoughtcache.train.folding_reward import folding_reward

    started = time.perf_counter()
    thinking = thinking_of(run, tokenizer)
    rewards = list(rewards_of(run).values())
    if isinstance(thinking, StepFolding):
        stop_ids = stop_token_ids(find_tuner(model).model.generation_config.eos_token_id, tokenizer)
        rewards = [folding_reward(reward, thinking, stop_ids) for reward in rewards]
    logged = train_grpo(
        model,
        tokenizer,
        grpo_rows(examples, tokenizer, run.instruction),
        rewards,
        run,
        folder=folder,
        resume=resume,
        title=f"{title}GRPO",
        console=console,
        thinking=thinking,
        **grpo_settings(run, run.grpo_steps),
    )
    if (folder / TIME_TABLE).is_file():
        plain_line(console, f"seconds by phase: {folder / TIME_TABLE}")
    for text in troubles(logged):
        plain_line(console, f"warning: {text}")
    without = [record["step"] for record in logged if record.get("cache/evictions") == 0]
    links_alone = thinking is not None and (thinking.keeps_written or find_tuner(model).thought_config.window is None)
    if without and not run.allow_no_eviction and not links_alone:
        plain_line(
            console,
            f"warning: in {len(without)} of {len(logged)} steps of GRPO no thought was evicted: all "
            f"{'answers' if thinking is None else 'links'} fitted into the window, and these steps trained as with the "
            "full cache; lower --window",
        )
    return {
        "rewards": [[record["step"], record["reward"]] for record in logged],
        "log": logged,
        "seconds": {"grpo": time.perf_counter() - started},
    }


def grpo_settings(run: RunConfig, num_steps: int) -> dict[str, Any]:
    """The fields of `ThoughtGRPOConfig` that a run sets, for so many optimiser steps."""
    return {
        "max_steps": num_steps,
        "per_device_train_batch_size": run.grpo_batch_size // run.gradient_accumulation,
        "gradient_accumulation_steps": run.gradient_accumulation,
        "num_generations": run.group_size,
        "max_completion_length": run.max_new_tokens,
        "learning_rate": run.grpo_learning_rate,
        "memory_learning_rate": run.grpo_memory_learning_rate,
        "temperature": run.temperature,
        "reward_weights": run.reward_weight,
        "beta": run.beta,
        "reuse_rollout": run.reuse_rollout,
        "pack_weights": run.pack_weights,
        "log_completions": run.log_completions > 0,
        "num_completions_to_print": run.log_completions,
        **({} if run.learning_rate_scheduler is None else schedule(run.learning_rate_scheduler)),
        **learner_options(run),
    }


def rewards_of(run: RunConfig) -> dict[str, Reward]:
    """The reward functions of a run by name.

    Raises:
        ValueError: if one of its own cannot be found.
    """
    from thoughtcache.train.rewards import math_correctness

    return {"math_correctness": math_correctness} if run.reward is None else {n: load_reward(n) for n in run.reward}


def thinking_of(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Thinking | None:
    """How the run thinks in links; None for one context.

    Raises:
        ValueError: if a setting is refused.
    """
    return None if run.thinking is None else make_thinking(run.thinking, run.thinking_options, tokenizer)


def grpo_rows(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, instruction: str
) -> list[dict[str, Any]]:
    """The rows that TRL sees; the same prompt tokens as `encode_prompt` gives.

    Args:
        examples: questions with answers, and other columns, which a reward may ask for.
        tokenizer: its chat template, if it has one, is applied by TRL.
        instruction: text after each question; "" for none.
    """
    names = sorted({name for example in examples for name in example.columns} - TAKEN)
    return [
        {name: example.columns.get(name) for name in names} | _row(example, tokenizer, instruction)
        for example in examples
    ]


def _row(example: Example, tokenizer: PreTrainedTokenizerBase, instruction: str) -> dict[str, Any]:
    messages = [dict(message) for message in example.messages]
    if instruction:
        messages[-1]["content"] += f"\n\n{instruction}"
    prompt = messages if tokenizer.chat_template else plain_prompt(messages)
    return {"prompt": prompt, "answer": example.answer, "answer_type": example.kind}
