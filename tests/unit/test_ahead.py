"""The batch that is ahead: handed over once, to who asks for its prompts, with the weights that sampled it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import pytest
import torch
from torch import nn

import thoughtcache as tc
from thoughtcache.records import SamplingSettings
from thoughtcache.scale.backend import SampledBatch
from thoughtcache.train.trl.ahead import AheadSampler
from thoughtcache.train.trl.generations import check_same_tokens
from thoughtcache.train.trl.weights_version import WeightsVersion

MODEL = nn.Identity()
SETTINGS = SamplingSettings(
    temperature=1.0, max_new_tokens=9, window=None, num_evicted=None, eviction="sliding", seed=0, ignore_eos=True
)


@dataclass(slots=True)
class Counting:
    """A backend that numbers its batches; what it is asked for is remembered."""

    ahead: bool = True
    started: list[list[list[int]]] = field(default_factory=list)

    def start(self, model: nn.Module, prompt_ids: Sequence[Sequence[int]], **options: Any) -> Done:
        """One more."""
        self.started.append([list(ids) for ids in prompt_ids])
        return Done(len(self.started))


@dataclass(slots=True)
class Done:
    """A batch that is there already."""

    number: int

    def result(self) -> SampledBatch:
        """Without rollouts: what is looked at is which one it is."""
        return SampledBatch(rollouts=[], adapter_version=self.number)


def version(steps: int) -> WeightsVersion:
    """The weights after so many optimiser steps."""
    return WeightsVersion(run=1, optimizer_steps=steps, parameters=())


def test_what_is_ahead_is_handed_over_once() -> None:
    """The same prompts in the next epoch are sampled anew, by the weights of then."""
    backend = Counting()
    sampler, prompts = AheadSampler(backend), [[3, 1], [4]]
    sampler.start_next(MODEL, prompts, version(5), max_new_tokens=2)
    batch, weights = sampler.sample(MODEL, prompts, version(6), max_new_tokens=2)
    assert (batch.adapter_version, weights) == (1, version(5))
    batch, weights = sampler.sample(MODEL, prompts, version(7), max_new_tokens=2)
    assert (batch.adapter_version, weights) == (2, version(7))
    assert backend.started == [prompts, prompts]


def test_other_prompts_than_those_ahead_are_sampled_anew_and_what_was_ahead_is_gone() -> None:
    backend = Counting()
    sampler = AheadSampler(backend)
    sampler.start_next(MODEL, [[3, 1], [4]], version(0), max_new_tokens=2)
    for number, prompts in enumerate(([[4], [3, 1]], [[3, 1], [4]]), start=2):
        batch, weights = sampler.sample(MODEL, prompts, version(1), max_new_tokens=2)
        assert (batch.adapter_version, weights) == (number, version(1))


def test_an_evaluation_leaves_what_is_ahead() -> None:
    sampler, prompts = AheadSampler(Counting()), [[3, 1]]
    sampler.start_next(MODEL, prompts, version(0), max_new_tokens=2)
    assert sampler.sample_now(MODEL, prompts, max_new_tokens=2).adapter_version == 2
    assert sampler.sample(MODEL, prompts, version(1), max_new_tokens=2)[0].adapter_version == 1


def test_batches_are_counted_over_the_whole_run() -> None:
    """Six were taken before: micro-step 7 is the second that is to come; what was seen is not taken, nor lost."""
    sampler, source = AheadSampler(Counting()), iter("abcd")
    batches = sampler.watch(source, num_taken=6)
    assert [sampler.batch_at(step) for step in (5, 7, 6, 10)] == [None, "b", "a", None]
    assert next(batches) == "a"
    assert sampler.watch(source, num_taken=7) is batches
    assert [sampler.batch_at(step) for step in (6, 7, 9, 10)] == [None, "b", "d", None]
    assert list(batches) == ["b", "c", "d"]


def test_nothing_is_watched_for_a_backend_that_waits() -> None:
    sampler, source = AheadSampler(Counting(ahead=False)), iter("ab")
    assert sampler.watch(source, num_taken=0) is source
    assert sampler.batch_at(0) is None
    assert list(source) == ["a", "b"]


def record(*token_ids: int) -> tc.Rollout:
    return tc.Rollout(
        prompt_ids=[3],
        token_ids=list(token_ids),
        logprobs=torch.zeros(len(token_ids)),
        finish_reason="length",
        settings=SETTINGS,
    )


def test_the_tokens_that_are_scored_are_those_that_were_kept() -> None:
    rollouts, batch = [record(5, 6, 7), record(8)], torch.tensor([[5, 6, 7], [8, 0, 0]])
    check_same_tokens(rollouts, batch)
    wrong: list[tuple[list[tc.Rollout], torch.Tensor]] = [
        (rollouts[::-1], batch),
        (rollouts[:1], batch),
        (rollouts, batch[:, :2]),
        (rollouts, torch.tensor([[5, 6, 9], [8, 0, 0]])),
        ([rollouts[0], changed(rollouts[1], token_ids=[8, 0, 1])], batch),
    ]
    for records, completions in wrong:
        with pytest.raises(ValueError, match="completions must not be edited"):
            check_same_tokens(records, completions)
