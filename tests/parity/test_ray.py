"""Rollouts of Ray actors are those of this process, also when an actor dies in the middle of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close, padded
from support.local_ray import local_ray
from support.models import tiny_base, tiny_model
from support.rollouts import PROMPTS
from thoughtcache.scale.ray_pool import LostActors
from thoughtcache.scale.ray_rollouts import RayRollouts, _Pending
from thoughtcache.tasks.embedded.reasoner import load_reasoner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PLAIN = "support.ray_model:plain_model"
TROUBLED = "support.ray_model:troubled_model"
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 17,
    "seed": 3,
    "stop_ids": [5, 11],
    "window": "prompt",
    "record_kv": "host",
}
MORE_PROMPTS = [*PROMPTS, PROMPTS[0], [4, 4], PROMPTS[0]]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with local_ray():
        yield


def learner(**changes: Any) -> Any:
    """The actors' model with another adapter: what they sample with must have been sent."""
    model = tiny_model(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                parameter.mul_(1.3)
    return model


def assert_same(found: list[tc.Rollout], expected: list[tc.Rollout]) -> None:
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    assert [r.settings for r in found] == [r.settings for r in expected]
    assert_close(padded(found), padded(expected))
    for name in ("keys_values", "entropies"):
        assert_close([getattr(r, name) for r in found], [getattr(r, name) for r in expected])


def test_two_actors_sample_what_this_process_samples() -> None:
    model = learner()
    with RayRollouts({}, loader=PLAIN, num_actors=2, num_shards=3, timeout_seconds=300.0) as actors:
        expected = tc.rollout(model, MORE_PROMPTS, **OPTIONS)
        assert len({len(r.token_ids) for r in expected}) > 1, "no row ended early"
        assert_same(actors.rollout(model, MORE_PROMPTS, **OPTIONS), expected)
        assert_same(actors.rollout(model, MORE_PROMPTS[:1], **OPTIONS), tc.rollout(model, MORE_PROMPTS[:1], **OPTIONS))
    other = tc.rollout(tiny_model(), MORE_PROMPTS, **OPTIONS)
    assert [r.token_ids for r in other] != [r.token_ids for r in expected], "the adapter makes no difference"


def test_a_call_keeps_the_adapter_that_it_began_with() -> None:
    model = learner()
    expected = tc.rollout(model, MORE_PROMPTS, **OPTIONS)
    with RayRollouts({}, loader=PLAIN, num_actors=1, timeout_seconds=300.0) as actors:
        pending = actors.start(model, MORE_PROMPTS, **OPTIONS)
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if "lora_B" in n).mul_(2.0)
        later = actors.start(model, MORE_PROMPTS, **OPTIONS)
        first, second, third = pending.result(), later.result(), actors.start(model, PROMPTS, **OPTIONS).result()
    assert_same(first.rollouts, expected)
    assert_same(second.rollouts, tc.rollout(model, MORE_PROMPTS, **OPTIONS))
    assert [batch.adapter_version for batch in (first, second, third)] == [1, 2, 2]


def test_the_shard_of_an_actor_that_dies_is_sampled_by_another(tmp_path: Path) -> None:
    model = learner()
    flag = tmp_path / "died"
    arguments = {"flag": str(flag)}
    with RayRollouts(arguments, loader=TROUBLED, num_actors=2, max_replacements=0, timeout_seconds=300.0) as actors:
        batch = actors.start(model, MORE_PROMPTS, **OPTIONS).result()
        assert flag.exists()
        assert batch.num_redispatched == 1
        assert_same(batch.rollouts, tc.rollout(model, MORE_PROMPTS, **OPTIONS))
        again = actors.start(model, MORE_PROMPTS, **OPTIONS).result()
        assert again.num_redispatched == 0
        # One actor instead of two, the same shards: the same bits.
        for one, other in zip(again.rollouts, batch.rollouts, strict=True):
            assert torch.equal(one.logprobs, other.logprobs)
            assert torch.equal(one.keys_values, other.keys_values)
            assert (one.states is None) == (other.states is None)
            assert one.states is None or torch.equal(one.states, other.states)


def test_a_new_actor_takes_the_place_of_the_only_one(tmp_path: Path) -> None:
    model = learner()
    with RayRollouts({"flag": str(tmp_path / "died")}, loader=TROUBLED, timeout_seconds=300.0) as actors:
        batch = actors.start(model, MORE_PROMPTS, **OPTIONS).result()
    assert batch.num_redispatched == 1
    assert_same(batch.rollouts, tc.rollout(model, MORE_PROMPTS, **OPTIONS))


def test_without_a_living_actor_there_is_an_error_and_no_wait() -> None:
    with (
        RayRollouts({}, loader="support.ray_model:always_dying_model", timeout_seconds=300.0) as actors,
        pytest.raises(LostActors, match="none of 1 rollout actors is left"),
    ):
        actors.rollout(learner(), MORE_PROMPTS, **OPTIONS)


def test_actors_load_from_folders(tmp_path: Path) -> None:
    base, model = tiny_base(dtype=torch.float32), learner(dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).mul_(2.0)  # what is in the folder is replaced
    folders = {"base": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter")}
    with RayRollouts(folders, timeout_seconds=300.0) as actors:
        found = actors.rollout(model, PROMPTS, max_new_tokens=9, seed=1)
    expected = tc.rollout(model, PROMPTS, max_new_tokens=9, seed=1)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    assert_close(padded(found), padded(expected), torch.float32)


def test_a_model_that_cannot_be_loaded_is_an_error_that_says_why() -> None:
    with (
        RayRollouts({"base": "nowhere", "adapter": "nowhere"}, max_replacements=0, timeout_seconds=300.0) as actors,
        pytest.raises(LostActors, match=r"(?s)none of 1 rollout actors.*load_from_folders.*OSError"),
    ):
        actors.rollout(learner(), MORE_PROMPTS, **OPTIONS)


def test_a_hanging_actor_ends_in_an_error_in_time_and_is_replaced(tmp_path: Path) -> None:
    arguments = {"flag": str(tmp_path / "hung"), "trouble": "hang"}
    model = learner()
    with RayRollouts(arguments, loader=TROUBLED, num_actors=1, timeout_seconds=300.0) as actors:
        actors.start(model, PROMPTS, max_new_tokens=2).result()  # the model is loaded: what follows is quick
        actors.timeout_seconds = 4.0
        with pytest.raises(LostActors, match=r"time limit is over: shards \[0\]"):
            actors.rollout(model, MORE_PROMPTS, **OPTIONS)
        actors.timeout_seconds = 300.0
        assert_same(actors.rollout(model, MORE_PROMPTS, **OPTIONS), tc.rollout(model, MORE_PROMPTS, **OPTIONS))


def test_errors_of_the_call_are_raised_as_they_are_and_cost_no_actor() -> None:
    model = learner()
    with RayRollouts({}, loader=PLAIN, num_actors=2, max_replacements=0, timeout_seconds=300.0) as actors:
        with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
            actors.rollout(model, MORE_PROMPTS, max_new_tokens=0)
        with pytest.raises(ValueError, match="other parameters than the sampler's"):
            actors.rollout(tiny_model(r=4), MORE_PROMPTS, **OPTIONS)
        with pytest.raises(ValueError, match="no prompts were given"):
            actors.rollout(model, [], **OPTIONS)
        with model.disable_adapter(), pytest.raises(ValueError, match="adapter, which is disabled here"):
            actors.rollout(model, MORE_PROMPTS, **OPTIONS)
        with pytest.raises(ValueError, match=r"made with window=7 \(the sampler has \d+\)"):
            actors.rollout(learner(window=7), MORE_PROMPTS, **OPTIONS)
        assert_same(actors.rollout(model, MORE_PROMPTS, **OPTIONS), tc.rollout(model, MORE_PROMPTS, **OPTIONS))


def test_stop_strings_and_seeds_travel() -> None:
    model, tokenizer = learner(), load_reasoner()[1]
    options: dict[str, Any] = {
        "max_new_tokens": 17, "seed": [4, 4, 9], "stop_strings": ["="], "tokenizer": tokenizer, "record_kv": "host",
    }  # fmt: skip
    expected = tc.rollout(model, PROMPTS[:3], **options)
    with RayRollouts({}, loader=PLAIN, timeout_seconds=300.0) as actors:
        assert_same(actors.rollout(model, PROMPTS[:3], **options), expected)


def test_a_result_that_does_not_come_is_an_error_of_the_pool() -> None:
    with pytest.raises(LostActors, match="no rollouts after 0 seconds, calls before this one included"):
        _Pending(Future(), 0.01).result()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_actors": 0}, "num_actors must be at least 1, got 0"),
        ({"num_actors": 2, "num_shards": 1}, "num_shards must be at least num_actors=2 or None, got 1"),
        ({"timeout_seconds": 0.0}, "timeout_seconds must be positive, got 0"),
        ({"loader": "support.ray_model"}, "must be an import path"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RayRollouts({}, **{"loader": PLAIN, **changes})


def test_children_of_the_tests_see_this_checkout() -> None:
    source = Path(tc.__file__).resolve().parents[1]
    assert source in [Path(path).resolve() for path in os.environ["PYTHONPATH"].split(os.pathsep)]
