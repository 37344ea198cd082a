"""Training on rollouts that somebody else samples: the same run if they are fresh, a corrected one if stale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thoughtcache as tc
from support.compare import TOLERANCE, max_difference, padded
from support.grpo import base_with_eos, even_words, prompts, quick_arguments, word_tokenizer
from support.local_ray import local_ray
from support.models import adapt
from thoughtcache.scale.backend import RolloutBackend, SampledBatch
from thoughtcache.scale.ray_rollouts import RayRollouts
from thoughtcache.train.trl import trainer as grpo
from thoughtcache.train.trl.ahead import Lookahead


@dataclass
class Done:
    """A batch that is there already."""

    batch: SampledBatch

    def result(self) -> SampledBatch:
        return self.batch


class Here:
    """A backend that samples in this process, when it is asked to start."""

    def __init__(self, *, ahead: bool) -> None:
        self.ahead = ahead
        self.started: list[list[list[int]]] = []

    def start(self, model: nn.Module, prompt_ids: Sequence[Sequence[int]], **options: Any) -> Done:
        self.started.append([list(ids) for ids in prompt_ids])
        return Done(SampledBatch(rollouts=tc.rollout(model, prompt_ids, **options), adapter_version=len(self.started)))


def make_trainer(folder: Path, backend: RolloutBackend | None, **changes: Any) -> tc.ThoughtGRPOTrainer:
    evaluation = {"eval_dataset": prompts(2)} if "eval_strategy" in changes else {}
    return tc.ThoughtGRPOTrainer(
        adapt(base_with_eos(dtype=torch.float32), evict_fraction=0.4),
        even_words,
        tc.ThoughtGRPOConfig(**quick_arguments(folder, **changes)),
        train_dataset=prompts(),
        processing_class=word_tokenizer(),
        rollout_backend=backend,
        **evaluation,
    )


def trained(trainer: tc.ThoughtGRPOTrainer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The adapter, and what was logged per step."""
    trainer.train()
    adapter = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return adapter, [entry for entry in trainer.state.log_history if "loss" in entry]


def test_a_backend_that_waits_trains_the_same_adapter(tmp_path: Path) -> None:
    expected, _ = trained(make_trainer(tmp_path, None))
    found, logged = trained(make_trainer(tmp_path, Here(ahead=False)))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [entry["rollout/staleness"] for entry in logged] == [0.0, 0.0, 0.0]
    assert [entry["rollout/adapter_version"] for entry in logged] == [1.0, 2.0, 3.0]
    assert all("policy/gap_max" in entry for entry in logged)


CASES: dict[str, tuple[dict[str, Any], list[float]]] = {
    # Eight prompts, one per step: the first batch of an epoch cannot be seen before the epoch begins.
    "two_epochs": ({"max_steps": 10}, [0.0, *[1.0] * 7, 0.0, 1.0]),
    "accumulated": ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, [0.0, 1.0, 1.0]),
    "evaluated_between": (
        {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4},
        [0.0, 1.0, 1.0],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rollouts_are_one_batch_stale_at_most_and_nothing_is_sampled_in_vain(case: str, tmp_path: Path) -> None:
    changes, staleness = CASES[case]
    backend, waiting = Here(ahead=True), Here(ahead=False)
    _, logged = trained(make_trainer(tmp_path, backend, **changes))
    trained(make_trainer(tmp_path, waiting, **changes))
    assert [entry["rollout/staleness"] for entry in logged] == staleness
    # Evaluations and training batches come in another order: the next batch is started before the evaluation.
    assert sorted(backend.started) == sorted(waiting.started)


def test_two_passes_over_a_batch_make_the_next_one_two_steps_stale(tmp_path: Path) -> None:
    _, logged = trained(make_trainer(tmp_path, Here(ahead=True), num_iterations=2, max_steps=4))
    assert [entry.get("rollout/staleness") for entry in logged] == [0.0, None, 2.0, None]
    _, logged = trained(make_trainer(tmp_path, Here(ahead=True), steps_per_generation=2, max_steps=4))
    assert [entry.get("rollout/staleness") for entry in logged] == [0.0, None, 2.0, None]


def test_the_policy_that_sampled_is_the_old_policy_of_stale_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`exp(new - old)` is TRL's weight: old are the sampler's log-probabilities, new those of the weights of now."""
    seen: list[dict[str, Any]] = []
    original = grpo.GRPOTrainer._compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        records = [self._run.generations["train"].rollouts[index] for index in inputs["rollout_index"].tolist()]
        with torch.no_grad():
            now = tc.replay(model, records, anchored=False).logprobs
        seen.append({"old": inputs.get("old_per_token_logps"), "sampled": padded(records), "now": now})
        return original(self, model, inputs, *rest)

    monkeypatch.setattr(grpo.GRPOTrainer, "_compute_loss", spy)
    _, logged = trained(make_trainer(tmp_path, Here(ahead=True)))
    assert seen[0]["old"] is None, "the first batch is fresh"
    for step in seen[1:]:
        assert max_difference(step["old"], step["sampled"]) < TOLERANCE[torch.float32]
        assert max_difference(step["now"], step["sampled"]) > 1e-3, "the policy has not moved: nothing was tested"
    assert ["policy/gap_max" in entry for entry in logged] == [True, False, False]


def test_stale_rollouts_cannot_be_reused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reuse_rollout=True needs rollouts of the current weights"):
        make_trainer(tmp_path, Here(ahead=True), reuse_rollout=True)
    make_trainer(tmp_path, Here(ahead=False), reuse_rollout=True)


def test_lookahead_shows_and_takes_nothing() -> None:
    numbers = Lookahead(iter(range(4)))
    assert [numbers.peek(1), numbers.peek(0), next(numbers), numbers.peek(2), numbers.peek(3)] == [1, 0, 0, 3, None]
    assert list(numbers) == [1, 2, 3]


@pytest.fixture
def _ray() -> Iterator[None]:
    with local_ray():
        yield


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.usefixtures("_ray")
def test_ray_actors_train_the_same_adapter_as_this_process(tmp_path: Path) -> None:
    """Ahead as well: the same rollouts, one step stale, whoever samples them."""
    for ahead in (False, True):
        expected, _ = trained(make_trainer(tmp_path, Here(ahead=ahead)))
        with RayRollouts(
            {"evict_fraction": 0.4},
            loader="support.ray_model:trainer_model",
            num_actors=2,
            ahead=ahead,
            timeout_seconds=240.0,
        ) as actors:
            found, logged = trained(make_trainer(tmp_path, actors))
        assert [entry["rollout/staleness"] for entry in logged] == ([0.0, 1.0, 1.0] if ahead else [0.0, 0.0, 0.0])
        assert [entry["rollout/adapter_version"] for entry in logged] == ([1.0, 1.0, 2.0] if ahead else [1.0, 2.0, 3.0])
        # Two actors batch the rows otherwise: fp32 rounding, through three steps of Adam.
        assert max(max_difference(found[name], value) for name, value in expected.items()) < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.usefixtures("_ray")
def test_a_step_whose_actor_is_killed_is_completed(tmp_path: Path) -> None:
    """The other actor takes its rows over, no third one is started, and training ends as if nothing had happened."""
    expected, _ = trained(make_trainer(tmp_path, Here(ahead=False)))
    with RayRollouts(
        {"evict_fraction": 0.4, "flag": str(tmp_path / "died")},
        loader="support.ray_model:troubled_trainer_model",
        num_actors=2,
        max_replacements=0,
        ahead=False,
        timeout_seconds=240.0,
    ) as actors:
        found, logged = trained(make_trainer(tmp_path, actors))
    assert (tmp_path / "died").exists()
    assert sum(entry["rollout/redispatched"] for entry in logged) == 1
    assert len(logged) == 3
    assert max(max_difference(found[name], value) for name, value in expected.items()) < 1e-3
