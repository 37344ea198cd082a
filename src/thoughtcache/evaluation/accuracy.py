"""Exact-match accuracy of a policy on the embedded tasks.

    accuracy = exact_match_accuracy(model, tokenizer, problems, max_new_tokens=64, window=16)
    accuracy.percent, accuracy.low, accuracy.high

Not covered: several samples per problem (`intervals.pass_at_k` takes their counts), answers that need a parser.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerFast

from thoughtcache.config import OWN_WINDOW
from thoughtcache.evaluation.intervals import wilson_interval
from thoughtcache.sampler.rollout import rollout
from thoughtcache.tasks.embedded.problem import Problem
from thoughtcache.tasks.embedded.reasoner import encode_prompt
from thoughtcache.tasks.example import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Right answers of one evaluation.

    Attributes:
        correct: right answers.
        total: problems.
        low: lower end of the 95 % Wilson interval, a share in [0, 1].
        high: upper end of it, a share in [0, 1].
        mean_tokens: thought tokens per problem, the end-of-sequence token included.
        evictions_mean: evictions per problem; 0 with a full cache.
        elapsed_seconds: wall-clock seconds of sampling.
    """

    correct: int
    total: int
    low: float
    high: float
    mean_tokens: float
    evictions_mean: float
    elapsed_seconds: float

    @property
    def percent(self) -> float:
        """Share of right answers in percent."""
        return 100.0 * self.correct / self.total


def exact_match_accuracy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int,
    window: int | str | None = OWN_WINDOW,
    temperature: float = 0.0,
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Sample one completion per problem and count exact answers.

    The result does not depend on `batch_size`, rounding aside. Inside `disable_adapter()` the base model is evaluated.
    All rollouts and their states are held until the end (`num evictions x L x G x R` fp32 numbers per problem).

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter.
        tokenizer: its tokenizer.
        problems: problems to solve, at least one.
        max_new_tokens: bound on the thought tokens of each problem; a completion that is cut is usually wrong.
        window: resident thoughts instead of the adapter's own: an integer, "prompt" or None for the full cache.
        temperature: 0 decodes greedily.
        batch_size: problems decoded at once, at least 1.
        seed: seed of the sampling; unused by greedy decoding.
        progress: called with the number of problems that were finished.

    Raises:
        ValueError: if there are no problems, if the batch size is below 1, or if `rollout` refuses its arguments.
    """
    if not problems:
        raise ValueError("problems is empty; pass at least one, for example sample_problems('chains', 100, 'test', 0)")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 problem, got {batch_size}")
    started = time.perf_counter()
    rollouts = rollout(
        model,
        [encode_prompt(tokenizer, problem.prompt) for problem in problems],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        window=window,
        batch_size=batch_size,
        tokenizer=tokenizer,
        anchors=False,
        progress=progress,
    )
    elapsed_seconds = time.perf_counter() - started
    texts = [str(tokenizer.decode(record.token_ids, skip_special_tokens=True)) for record in rollouts]
    correct = sum(check(problem.example, text).correct for problem, text in zip(problems, texts, strict=True))
    total = len(problems)
    low, high = wilson_interval(correct, total)
    return Accuracy(
        correct=correct,
        total=total,
        low=low,
        high=high,
        mean_tokens=sum(len(record.token_ids) for record in rollouts) / total,
        evictions_mean=sum(len(record.evictions) for record in rollouts) / total,
        elapsed_seconds=elapsed_seconds,
    )
