"""Gradients of replay against autograd through the naive loop, for every trainable parameter, in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_gradients_match, gradient_error, gradients, weighted_loss
from support.models import CONTROLS, FAMILIES, tiny_model, trainable, use_norms_without_fp32
from support.rollouts import ragged_rollouts
from thoughtcache.state import STATE_RULES
from thoughtcache.state.adapter_state import AdapterState

PROMPTS = [[3, 1, 4, 1], [6, 5], [9]]
NEW_TOKENS = 12
CASES = {**CONTROLS, "three tokens leave at once": {"window": 4, "evict_fraction": 0.75}}


def naive_gradients(model, rollouts, gradient="exact"):
    return gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts, gradient=gradient)))


def replay_gradients(model, rollouts, gradient="exact", anchored=True):
    return gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, gradient=gradient, anchored=anchored)))


def check(model, gradient="exact"):
    """Replay, with recorded states and without, has the gradient of the naive loop; returns that gradient."""
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    expected = naive_gradients(model, rollouts, gradient)
    assert_gradients_match(replay_gradients(model, rollouts, gradient, anchored=True), expected)
    assert_gradients_match(replay_gradients(model, rollouts, gradient, anchored=False), expected)
    return expected


@pytest.mark.parametrize("rule", sorted(STATE_RULES))
def test_every_parameter_of_a_rule_takes_part(rule):
    expected = check(tiny_model(state_rule=rule, eviction="random", window=3))
    # Every parameter of adapter and encoder takes part; one evicted token alone has a softmax without a gradient.
    idle = {name for name, value in expected.items() if value.norm() < 1e-8}
    assert not idle


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_model_families(family):
    check(tiny_model(family))


@pytest.mark.parametrize("control", CASES)
def test_controls(control):
    check(tiny_model(**CASES[control]))


@pytest.mark.parametrize("gradient", ["detached", 1, 2, 3])
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_truncated_gradients_are_their_definitions(rule, gradient):
    check(tiny_model(state_rule=rule, window=3), gradient)


def test_truncated_gradients_differ_from_the_exact_one_and_from_each_other():
    model = tiny_model(window=3)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    found = {mode: replay_gradients(model, rollouts, mode) for mode in ("exact", "detached", 1, 2)}
    for first in found:
        for second in found:
            if first != second:
                assert gradient_error(found[first], found[second]) > 1e-3, (first, second)


def test_a_block_longer_than_the_rollout_is_exact():
    model = tiny_model(window=3)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    assert_gradients_match(replay_gradients(model, rollouts, 100), replay_gradients(model, rollouts, "exact"))


def test_recorded_states_do_not_cut_the_gradient():
    # The mutation: recorded states used as constants, which is what anchoring must not do.
    model = tiny_model(window=3)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    exact = replay_gradients(model, rollouts)
    absorber = AdapterState.absorber

    def cut(self):
        absorb = absorber(self)
        return lambda *block: absorb(*block).detach()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterState, "absorber", cut)
        broken = replay_gradients(model, rollouts)
    assert gradient_error(broken, exact) > 1e-2


def test_gradients_at_the_values_of_the_record_when_weights_have_moved():
    # After an optimiser step the recorded states belong to old weights; without anchors nothing of the record but
    # tokens and slots is used.
    model = tiny_model(eviction="random", window=3)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert_gradients_match(replay_gradients(model, rollouts, anchored=False), naive_gradients(model, rollouts))
    without = [replace(rollout, states=None) for rollout in rollouts]
    assert_gradients_match(replay_gradients(model, without, anchored=False), naive_gradients(model, rollouts))
    with pytest.raises(ValueError, match="rollout 0 carries no recorded states; replay it with anchored=False"):
        replay_gradients(model, without)


def test_directional_derivative_by_finite_differences():
    # Independent of autograd through either execution: central differences of the loss along a random direction.
    model = tiny_model(window=3, state_rule="gated")
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    parameters = trainable(model)
    direction = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    found = replay_gradients(model, rollouts, anchored=False)
    slope = sum((found[name] * direction[name]).sum() for name in parameters)

    def loss_at(step: float) -> torch.Tensor:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(direction[name], alpha=step)
            value = weighted_loss(tc.replay(model, rollouts, anchored=False))
            for name, parameter in parameters.items():
                parameter.sub_(direction[name], alpha=step)
        return value

    step = 1e-5
    measured = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert measured.item() == pytest.approx(slope.item(), rel=1e-6)


def test_the_gradient_of_a_batch_is_the_sum_over_its_parts():
    model = tiny_model(window=3)
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    whole = gradients(model, lambda: tc.replay(model, rollouts).logprobs.sum())
    parts = [gradients(model, lambda row=row: tc.replay(model, [row]).logprobs.sum()) for row in rollouts]
    assert_gradients_match({name: sum(part[name] for part in parts) for name in whole}, whole)


def test_entropies_and_masked_tokens_have_no_gradient():
    model = tiny_model()
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    out = tc.replay(model, rollouts)
    assert not out.entropies.requires_grad
    assert (out.logprobs[~out.mask] == 0).all()
    model.zero_grad()
    (out.logprobs * ~out.mask).sum().backward()
    assert all(p.grad is None or p.grad.count_nonzero() == 0 for p in trainable(model).values())


def test_no_graph_is_built_without_grad():
    model = tiny_model()
    rollouts = ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)
    with torch.no_grad():
        assert not tc.replay(model, rollouts).logprobs.requires_grad
    assert not rollouts[0].logprobs.requires_grad
    assert not rollouts[0].states.requires_grad
