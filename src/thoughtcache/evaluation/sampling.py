"""Answers of one engine to many questions, each handed over with its verdict as soon as it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate

from torch import nn
from transformers import PreTrainedTokenizerBase

from thoughtcache.chains.chain import Chain, Trace, links_of
from thoughtcache.chains.sample import rollout_chains
from thoughtcache.chains.thinking import Thinking
from thoughtcache.evaluation.generations import Generation
from thoughtcache.measuring.phase_timer import PhaseTimer
from thoughtcache.records import Rollout, TokenFilters
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.events import Finished
from thoughtcache.sampler.request import Request
from thoughtcache.tasks.example import Example, check

_SEED_BITS = 42


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One answer that is wanted.

    Attributes:
        suite: name of the suite.
        example: the question; its identifier is unique in the run.
        prompt_ids: tokens of its prompt.
        sample: number of the answer among those to this question, from 0.
        temperature: 0 decodes greedily.
        max_new_tokens: bound on the tokens of the answer.
        begun: its first tokens, which were sampled before with its seed; it goes on from there.
    """

    suite: str
    example: Example
    prompt_ids: list[int]
    sample: int
    temperature: float
    max_new_tokens: int
    begun: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        """Question and number of the sample."""
        return self.example.identifier, self.sample


def sample_seed(seed: int, question: str, sample: int) -> int:
    """The seed of one answer: it depends on run seed, question and number alone, not on what else is asked, or when."""
    text = f"{seed}/{question}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> (64 - _SEED_BITS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the answers of a run are sampled.

    Attributes:
        window: resident thoughts, or None for the full cache.
        num_slots: answers sampled at once.
        seed: seed of the run.
        filters: top-k and the like, for tasks that are not greedy.
        stop_strings: texts that end an answer.
        pack_weights: see `rollout`.
        thinking: answer in links (`chains/`); None for one context.
        timer: adds up the seconds of the phases of sampling, and of the checks as "rewards".

    Raises:
        ValueError: for stop strings beside links.
    """

    window: int | None
    num_slots: int
    seed: int
    filters: TokenFilters
    stop_strings: Sequence[str]
    pack_weights: bool
    thinking: Thinking | None = None
    timer: PhaseTimer | None = None

    def __post_init__(self) -> None:
        if self.thinking is not None and self.stop_strings:
            raise ValueError(
                f"stop={list(self.stop_strings)} ends one sequence, and thinking makes several of it; leave it out"
            )

    def phase(self, name: str) -> AbstractContextManager[object]:
        """A block that the timer counts, if there is one."""
        return nullcontext() if self.timer is None else self.timer.phase(name)


def sample_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sampling: Sampling,
    report: Callable[[Generation], None],
) -> None:
    """Sample and judge answers.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter; inside `disable_adapter()` the base model is asked.
        tokenizer: its tokenizer.
        tasks: the answers that are wanted, at least one.
        sampling: how they are sampled.
        report: gets every answer when it has ended.

    Raises:
        ValueError: if the model cannot sample a task.
    """
    if sampling.thinking is not None:
        _sample_chains(model, tokenizer, tasks, sampling, sampling.thinking, report)
        return
    sample_rollouts(model, tokenizer, tasks, sampling, lambda task, one: report(judged(task, one, tokenizer)))


def sample_rollouts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sampling: Sampling,
    finished: Callable[[Task, Rollout], None],
) -> None:
    """Sample answers; a slot whose answer ends takes the next one at once.

    Answers to one question share the pass over its prompt where they begin together.

    Args:
        model: see `sample_answers`, as for the others.
        tokenizer: its tokenizer.
        tasks: the answers that are wanted, at least one.
        sampling: how they are sampled.
        finished: gets every answer when it has ended.
    """
    assert sampling.thinking is None, "an answer in links is no rollout"
    engine = Engine(
        model,
        num_slots=min(sampling.num_slots, len(tasks)),
        window=sampling.window,
        tokenizer=tokenizer,
        max_prompt_tokens=max(len(task.prompt_ids) for task in tasks),
        max_new_tokens=max(task.max_new_tokens for task in tasks),
        anchors=False,
        pack_weights=sampling.pack_weights,
        timer=sampling.timer,
    )
    waiting: dict[int, Task] = {}
    for task in tasks:
        number = engine.add(
            Request(
                prompt_ids=task.prompt_ids,
                max_new_tokens=task.max_new_tokens,
                temperature=task.temperature,
                filters=sampling.filters if task.temperature > 0 else TokenFilters(),
                seed=sample_seed(sampling.seed, *task.key),
                stop_strings=sampling.stop_strings,
                given_tokens=task.begun or None,
            )
        )
        waiting[number] = task
    engine.drain()
    with engine, sampling.phase("rollout"):
        while not engine.is_idle:
            for event in engine.step():
                if isinstance(event, Finished):
                    with sampling.phase("rewards"):
                        finished(waiting.pop(event.request), event.rollout)


def _sample_chains(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sampling: Sampling,
    thinking: Thinking,
    report: Callable[[Generation], None],
) -> None:
    """`sample_answers` in links, one call for the tasks of each temperature and length."""
    assert not any(task.begun for task in tasks), "a beginning of an answer in links is not defined"
    groups: dict[tuple[float, int], list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.temperature, task.max_new_tokens), []).append(task)
    for (temperature, max_new_tokens), group in groups.items():

        def tell(number: int, chain: Chain, group: list[Task] = group) -> None:
            with sampling.phase("rewards"):
                report(judged(group[number], chain, tokenizer))

        with sampling.phase("rollout"):
            rollout_chains(
                model,
                [task.prompt_ids for task in group],
                thinking,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                filters=sampling.filters if temperature > 0 else TokenFilters(),
                seed=[sample_seed(sampling.seed, *task.key) for task in group],
                window=sampling.window,
                batch_size=sampling.num_slots,
                tokenizer=tokenizer,
                anchors=False,
                pack_weights=sampling.pack_weights,
                timer=sampling.timer,
                on_chain=tell,
            )


def judged(task: Task, trace: Trace, tokenizer: PreTrainedTokenizerBase) -> Generation:
    """The record of an answer, in one link or several, with its verdict."""
    return judged_tokens(
        task,
        tokenizer,
        token_ids=trace.token_ids,
        seed=links_of([trace])[0].settings.seed,
        finish_reason=trace.finish_reason,
        evictions=evictions_of(trace),
    )


def evictions_of(trace: Trace) -> list[list[int]]:
    """[before_token, num_tokens] of every eviction; thoughts are numbered through all links."""
    links = links_of([trace])
    starts = accumulate((len(link.token_ids) for link in links[:-1]), initial=0)
    return [
        [start + eviction.before_token, eviction.num_tokens]
        for start, link in zip(starts, links, strict=True)
        for eviction in link.evictions
    ]


def judged_tokens(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    token_ids: list[int],
    seed: int,
    finish_reason: str,
    evictions: list[list[int]],
) -> Generation:
    """The record of an answer that is given in tokens; the other arguments are fields of `Generation`."""
    text = str(tokenizer.decode(token_ids, skip_special_tokens=True))
    verdict = check(task.example, text)
    return Generation(
        suite=task.suite,
        question=task.example.identifier,
        sample=task.sample,
        seed=seed,
        text=text,
        num_tokens=len(token_ids),
        finish_reason=finish_reason,
        evictions=evictions,
        correct=verdict.correct,
        reason=verdict.reason,
        extracted=verdict.extracted,
        reference=str(task.example.answer),
        kind=task.example.kind,
    )
