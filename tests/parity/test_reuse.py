"""A learner that starts from the sampler's own records has the scores and the gradient of one that runs forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients, max_difference, padded, weighted_loss
from support.models import CONTROLS, tiny_model
from support.policies import KINDS
from support.rollouts import ragged_rollouts
from thoughtcache.learner import reverse
from thoughtcache.learner.chunk import batch_chunks
from thoughtcache.learner.kv_log import KVLog
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.state import STATE_RULES

PROMPTS = [[3, 1, 4, 1], [6, 5], [9]]


def case(**config):
    model = tiny_model(**{"window": 3, **config})
    return model, ragged_rollouts(model, max_new_tokens=12, prompts=PROMPTS, record_kv="device")


def gradient_of(model, rollouts, **options):
    return gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, **options)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 5])
@pytest.mark.parametrize("eviction", KINDS)
def test_same_gradient_as_with_a_forward_pass(eviction, chunk_tokens, order):
    model, rollouts = case(eviction=eviction, state_rule="gated", window=5, evict_fraction=0.6)
    rollouts = [rollouts[row] for row in order]
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts)))
    assert_gradients_match(gradient_of(model, rollouts, chunk_tokens=chunk_tokens, reuse=True), expected)


@pytest.mark.parametrize("rule", [*sorted(STATE_RULES), "spectral norm when read"])
def test_state_rules(rule):
    model, rollouts = case(**CONTROLS.get(rule, {"state_rule": rule}))
    assert_gradients_match(gradient_of(model, rollouts, reuse=True), gradient_of(model, rollouts))


@pytest.mark.parametrize(
    "config",
    [
        {"initial_state": "identity", "absorb": False, "num_global_tokens": 3},
        {"initial_state": "zero"},
        {"absorb": False},
        {"window": None},
        {"window": "prompt"},
        {"positions": "rolling", "eviction": "random", "window": 5, "evict_fraction": 0.4},
    ],
)
def test_controls_and_full_cache(config):
    model, rollouts = case(**config)
    assert_gradients_match(gradient_of(model, rollouts, reuse=True), gradient_of(model, rollouts))


@pytest.mark.parametrize("gradient", ["detached", 1, 2])
def test_truncated_gradients(gradient):
    model, rollouts = case()
    expected = gradient_of(model, rollouts, gradient=gradient)
    assert_gradients_match(gradient_of(model, rollouts, gradient=gradient, reuse=True), expected)


def test_scores_are_the_recorded_ones_and_nothing_runs_forward():
    model, rollouts = case()
    chunks = batch_chunks(batch_rollouts(sorted(rollouts, key=lambda r: -len(r.token_ids)), torch.device("cpu")))
    calls = []
    hook = model.base_model.backbone.register_forward_hook(lambda *_: calls.append(1))
    scored = tc.replay(model, rollouts, reuse=True)
    assert not calls
    assert max_difference(scored.logprobs, padded(rollouts)) == 0.0
    scored.logprobs.sum().backward()
    hook.remove()
    assert len(calls) == len(chunks)
    assert_close(scored.entropies, tc.replay(model, rollouts).entropies)


def test_the_record_is_the_log_of_a_forward_pass(monkeypatch):
    logs = []

    class Seen(KVLog):
        def __init__(self, *args):
            super().__init__(*args)
            logs.append(self)

    monkeypatch.setattr(reverse, "KVLog", Seen)
    model, rollouts = case(eviction="random", state_rule="gated")
    tc.replay(model, rollouts)
    tc.replay(model, rollouts, reuse=True)
    ran, filled = logs
    assert ran.num_bytes == filled.num_bytes
    for index, chunk in enumerate(ran.chunks[1:], start=1):
        for row, rollout in enumerate(filled.rollouts[: chunk.rows]):
            if filled.width + len(rollout.token_ids) - 2 < chunk.start:
                continue  # it has ended, and nothing reads what stands behind its end
            real = slice(filled.width - len(rollout.prompt_ids), None)
            for pair, other in zip(ran.read(index, chunk), filled.read(index, chunk), strict=True):
                for tensor, recorded in zip(pair, other, strict=True):
                    assert_close(recorded[row, :, real], tensor[row, :, real])


def test_a_wrong_record_is_seen():
    # The mutation: one key of one early token is another; the gradient must differ.
    model, rollouts = case()
    exact = gradient_of(model, rollouts, reuse=True)
    rollouts[0].keys_values[1, 0, 0, 2] += 1.0
    found = gradient_of(model, rollouts, reuse=True)
    assert max((found[name] - exact[name]).abs().max().item() for name in exact) > 1e-4


def test_refusals():
    model, rollouts = case()
    bare = [replace(rollout, keys_values=None) for rollout in rollouts]
    for wrong, options in ((bare, {}), ([replace(r, entropies=None) for r in rollouts], {})):
        with pytest.raises(ValueError, match=r"sample it with rollout\(record_kv="):
            tc.replay(model, wrong, reuse=True, **options)
    with pytest.raises(ValueError, match="carries no recorded states"):
        tc.replay(model, [replace(rollout, states=None) for rollout in rollouts], reuse=True)
    for options in ({"anchored": False}, {"full_cache": True}, {"recompute": False}):
        with pytest.raises(ValueError, match="reuse=True repeats what was sampled"):
            tc.replay(model, rollouts, reuse=True, **options)
