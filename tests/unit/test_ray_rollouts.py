"""What `RayRollouts` does around Ray: shards out, rows back in order, an adapter that was refused stays refused.

Ray is replaced by calls in this process; Ray itself is in `parity/test_ray.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close
from support.fake_ray import FakeRay
from support.models import tiny_model
from support.rollouts import PROMPTS
from thoughtcache.scale import ray_rollouts
from thoughtcache.scale.shards import plan_shards

LOADER = "support.ray_model:plain_model"
OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "seed": 3, "ignore_eos": True}
MORE_PROMPTS = [*PROMPTS, PROMPTS[0], [4, 4], PROMPTS[0]]


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_rollouts, "_import_ray", FakeRay)


def learner(**changes: Any) -> Any:
    """The actors' model with another adapter."""
    model = tiny_model(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                parameter.mul_(1.3)
    return model


@pytest.mark.parametrize(("num_actors", "num_shards"), [(1, 3), (3, 3), (2, 7)])
def test_rows_come_back_in_the_order_of_the_prompts(num_actors: int, num_shards: int) -> None:
    dealt = [row for shard in plan_shards(MORE_PROMPTS, num_shards) for row in shard]
    assert dealt != sorted(dealt), "the shards follow each other as the rows do: nothing is tested"
    model = learner()
    with tc.RayRollouts({}, loader=LOADER, num_actors=num_actors, num_shards=num_shards) as actors:
        found = actors.rollout(model, MORE_PROMPTS, **OPTIONS)
        expected = tc.rollout(model, MORE_PROMPTS, **OPTIONS)
        assert [r.prompt_ids for r in found] == MORE_PROMPTS
        assert [r.token_ids for r in found] == [r.token_ids for r in expected]
        assert_close([r.logprobs for r in found], [r.logprobs for r in expected])


def test_an_adapter_that_an_actor_refused_is_refused_again() -> None:
    """The second call sends the same version: an actor that took it for loaded would sample with its own weights."""
    with tc.RayRollouts({}, loader=LOADER) as actors:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"made with window=7 \(the sampler has 5\)"):
                actors.rollout(learner(window=7), MORE_PROMPTS[:2], **OPTIONS)
        model = learner()
        found, expected = (sample(model, PROMPTS[:2], **OPTIONS) for sample in (actors.rollout, tc.rollout))
        assert [r.token_ids for r in found] == [r.token_ids for r in expected]
