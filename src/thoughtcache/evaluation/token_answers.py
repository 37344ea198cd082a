"""Answers in tokens, which can be cut: what a shorter bound on the tokens would have given.

An answer is sampled token by token. A token depends on the tokens before it and on random numbers of the answer's own
seed, and so does what leaves the cache; the bound only says when to stop. So the answer under a bound is the beginning
of the answer under any larger one, beyond rounding. It does not hold for answers in links (`chains/`), where the bound
is on all links together, nor for answers that are chosen among others.

Proof: tests/unit/test_scale.py samples under every bound and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from thoughtcache.evaluation.generations import Generation
from thoughtcache.evaluation.record_file import Record
from thoughtcache.evaluation.sampling import Sampling, Task, evictions_of, judged_tokens, sample_rollouts
from thoughtcache.records import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenAnswer(Record):
    """One answer without its verdict.

    Attributes:
        question: identifier of the question.
        sample: number of the answer among those to its question, from 0.
        seed: seed of its random numbers.
        token_ids: its tokens, the token that ended it included.
        finish_reason: "stop", or "length" if it was cut.
        evictions: [before_token, num_tokens] of every eviction: what left before which thought token.
    """

    question: str
    sample: int
    seed: int
    token_ids: list[int]
    finish_reason: str
    evictions: list[list[int]]

    @property
    def key(self) -> tuple[str, int]:
        """Question and number of the sample."""
        return self.question, self.sample


def cut(answer: TokenAnswer, num_tokens: int) -> TokenAnswer:
    """The answer under a bound on its tokens.

    The last token of a cut answer is drawn and not processed, so that nothing leaves for it.

    Args:
        answer: an answer under the same or a larger bound.
        num_tokens: the bound, at least 1.
    """
    if len(answer.token_ids) <= num_tokens:
        return answer
    return replace(
        answer,
        token_ids=answer.token_ids[:num_tokens],
        finish_reason="length",
        evictions=[eviction for eviction in answer.evictions if eviction[0] < num_tokens - 1],
    )


def sample_token_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sampling: Sampling,
    report: Callable[[TokenAnswer], None],
) -> None:
    """Sample answers, each handed over when it has ended; the arguments are those of `sample_answers`."""
    sample_rollouts(model, tokenizer, tasks, sampling, lambda task, rollout: report(token_answer(task, rollout)))


def token_answer(task: Task, rollout: Rollout) -> TokenAnswer:
    """The record of an answer in one link."""
    return TokenAnswer(
        question=task.example.identifier,
        sample=task.sample,
        seed=rollout.settings.seed,
        token_ids=rollout.token_ids,
        finish_reason=rollout.finish_reason,
        evictions=evictions_of(rollout),
    )


def judged_answer(task: Task, answer: TokenAnswer, tokenizer: PreTrainedTokenizerBase) -> Generation:
    """The answer with its verdict."""
    return judged_tokens(
        task,
        tokenizer,
        token_ids=answer.token_ids,
        seed=answer.seed,
        finish_reason=answer.finish_reason,
        evictions=answer.evictions,
    )
