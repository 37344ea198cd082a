"""Shards partition the rows evenly, keep equal prompts together, and never depend on anything but the prompts."""

from __future__ import annotations

import inspect
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close, padded
from support.models import tiny_model
from support.rollouts import PROMPTS
from thoughtcache.sampler.options import RolloutOptions
from thoughtcache.scale.processes import _digest
from thoughtcache.scale.shards import plan_shards
from thoughtcache.tasks.embedded.reasoner import load_reasoner

rows = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=24)


@given(rows, st.integers(1, 9))
def test_shards_partition_the_rows_in_even_shares(prompts: list[list[int]], num_shards: int) -> None:
    shards = plan_shards(prompts, num_shards)
    assert sorted(row for shard in shards for row in shard) == list(range(len(prompts)))
    assert all(shard == sorted(shard) for shard in shards)
    assert 0 < len(shards) <= num_shards
    assert min(map(len, shards)) > 0
    assert max(map(len, shards)) <= -(-len(prompts) // num_shards)


def test_groups_stay_together_and_long_prompts_are_spread() -> None:
    long, short = [1] * 9, [2]
    # The longest group first, then each to the shard with the fewest rows and the fewest tokens.
    groups = [short, long, short, long, [3] * 8, [4], [3] * 8, [4]]
    assert plan_shards(groups, 2) == [[1, 3, 5, 7], [0, 2, 4, 6]]
    assert plan_shards([[1]] * 5, 2) == [[0, 1, 2], [3, 4]]
    assert plan_shards([[1]], 4) == [[0]]


def test_no_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="num_shards must be at least 1, got 0"):
        plan_shards([[1]], 0)
    with pytest.raises(ValueError, match="no prompts were given"):
        plan_shards([], 2)


@pytest.mark.parametrize("eviction", ["sliding", "random"])
@pytest.mark.parametrize("window", ["config", "prompt"])
def test_some_rows_of_a_call_are_what_the_whole_call_gives_them(eviction: str, window: str) -> None:
    """The longest prompt, which decides about window="prompt", is not among the rows."""
    model = tiny_model(eviction=eviction)
    options = RolloutOptions(max_new_tokens=13, seed=5, window=window)
    whole = tc.rollout(model, PROMPTS, **options)
    chosen = [3, 1]
    found = tc.rollout(model, PROMPTS, rows=chosen, **options)
    assert [r.token_ids for r in found] == [whole[row].token_ids for row in chosen]
    assert [r.settings for r in found] == [whole[row].settings for row in chosen]
    assert_close(padded(found), padded([whole[row] for row in chosen]))
    alone = tc.rollout(model, [PROMPTS[row] for row in chosen], **options)
    assert [r.token_ids for r in alone] != [r.token_ids for r in found], "row numbers make no difference"


@pytest.mark.parametrize("wrong", [[], [4], [0, -1]])
def test_rows_that_are_not_there_are_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="rows must be numbers from 0 to 3"):
        tc.rollout(tiny_model(), PROMPTS, max_new_tokens=2, rows=wrong)


def test_options_are_the_arguments_of_rollout_that_can_be_sent() -> None:
    """A new argument of `rollout` must be entered in `RolloutOptions`, or among those that cannot be sent."""
    here_only = {"model", "prompt_ids", "rows", "on_event", "stream", "timer", "progress"}
    parameters = inspect.signature(tc.rollout).parameters
    assert set(parameters) - here_only == set(RolloutOptions.__annotations__)


def test_calls_that_differ_are_told_apart() -> None:
    """The tokenizer has no value that could be compared."""
    one = _digest([[1, 2]], None, RolloutOptions(max_new_tokens=3, stop_strings=["="], tokenizer=load_reasoner()[1]))
    assert _digest([(1, 2)], None, RolloutOptions(max_new_tokens=3, stop_strings=("=",))) == one
    seeds = _digest([[1, 2]], None, {"max_new_tokens": 3, "seed": cast(Any, np.int64(4))})
    assert seeds == _digest([[1, 2]], None, RolloutOptions(max_new_tokens=3, seed=4))
    others = [
        seeds,
        _digest([[1, 2]], 0, RolloutOptions(max_new_tokens=3, stop_strings=["="])),
        _digest([[1, 2]], None, RolloutOptions(max_new_tokens=3, stop_strings=["+"])),
        _digest([[1], [2]], None, RolloutOptions(max_new_tokens=3, stop_strings=["="])),
    ]
    assert one not in others
    assert len(set(others)) == len(others)
