"""No learner holds more than a few chunks of logits at a time, forward or backward, and the gradient is the same."""

from __future__ import annotations

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_gradients_match, gradients, weighted_loss
from support.models import tiny_model, use_norms_without_fp32
from support.rollouts import ragged_rollouts
from thoughtcache.measuring.live_bytes import LiveBytes
from thoughtcache.policy import scores
from thoughtcache.train.distill import distill_loss
from thoughtcache.train.distill_config import DistillConfig

VOCABULARY = 97  # the only size of this kind in the model
ROWS = 2
NUMBER_BYTES = 8
TENSORS = 6
"""Of the size of the logits of a chunk: the KL of two distributions has five at its highest point."""
REPLAYS = {
    "in reverse": {"chunk_tokens": 3},
    "whole segments": {"chunk_tokens": None},
    "blocks": {"gradient": 2, "chunk_tokens": 3},
    "checkpoints of layers": {"checkpoint_layers": True},
    "one graph, chunks smaller than those of logits": {"recompute": False, "chunk_tokens": 1},
    "one graph": {"recompute": False},
    "records": {"reuse": True},
}


class LiveLogits(LiveBytes):
    """Bytes of tensors with the vocabulary as their last axis, the model's own not included."""

    def _count(self, tensor: torch.Tensor) -> None:
        if tensor.ndim > 0 and tensor.shape[-1] == VOCABULARY:
            super()._count(tensor)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", ROWS * VOCABULARY)
    model = tiny_model(window=5, evict_fraction=0.6, base={"vocab_size": VOCABULARY})
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=24, prompts=[[3, 1, 4], [6, 5], [9]], record_kv="device")
    assert sum(len(rollout.token_ids) for rollout in rollouts) > 4 * ROWS * TENSORS
    return model, rollouts


def check_peak(live: LiveLogits) -> None:
    assert NUMBER_BYTES * VOCABULARY <= live.peak_bytes <= TENSORS * ROWS * VOCABULARY * NUMBER_BYTES


@pytest.mark.parametrize("name", REPLAYS)
def test_replay(name: str, case) -> None:
    model, rollouts = case
    with LiveLogits() as live:
        found = gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, **REPLAYS[name])))
    check_peak(live)
    mode = REPLAYS[name].get("gradient", "exact")
    assert_gradients_match(found, gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, gradient=mode))))


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "cross_entropy"])
def test_distillation(loss: str, recompute: bool, case) -> None:
    model, rollouts = case
    config = DistillConfig(output_dir="", loss=loss, recompute=recompute, chunk_tokens=3)
    with LiveLogits() as live:
        distill_loss(model, model, sorted(rollouts, key=lambda row: -len(row.token_ids)), config).backward()
    check_peak(live)
