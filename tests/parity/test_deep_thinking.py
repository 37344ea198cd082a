"""Deep-thinking tokens: the fast form over the learner's pieces against the paper's loops over the naive policy."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

import thoughtcache as tc
from support.models import FAMILIES, tiny_model
from support.rollouts import ragged_rollouts
from thoughtcache.evaluation.thinking.deep_tokens import deep_tokens
from thoughtcache.evaluation.thinking.definition import DeepThinking
from thoughtcache.evaluation.thinking.naive import naive_ratio, naive_settling_depths
from thoughtcache.policy.handle import open_policy

LAYERS = 6
DEFINITIONS = [
    DeepThinking(threshold=0.07, depth=0.6),
    DeepThinking(threshold=0.07, depth=0.5, reading="algorithm", norm=False),
    DeepThinking(threshold=0.04, depth=0.8, log_base="e"),
]


def naive_logits(model, rollout, *, norm):
    """[L, T, V] logits of every layer at the positions that predict thoughts, one token per forward pass."""
    policy, outputs, ends = open_policy(model), [[] for _ in range(LAYERS)], []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output, index=index: outputs[index].append(output[0, -1]))
        for index, layer in enumerate(policy.backbone.layers)
    ]
    final = policy.backbone.norm
    handles.append(final.register_forward_hook(lambda module, inputs, output: ends.append(output[0, -1])))
    tc.naive_logprobs(model, [rollout])
    for handle in handles:
        handle.remove()
    first = len(rollout.prompt_ids) - 1
    early = [torch.stack(own[first:]) for own in outputs[:-1]]
    states = [*(final(own) if norm else own for own in early), torch.stack(ends[first:])]
    return torch.stack([policy.head(own) for own in states])


@pytest.mark.parametrize(
    ("family", "definition"),
    [*(("llama", own) for own in DEFINITIONS), *((family, DEFINITIONS[0]) for family in FAMILIES[1:])],
    ids=["equation", "algorithm, no norm", "nats", *FAMILIES[1:]],
)
def test_the_fast_form_finds_the_tokens_of_the_loops(family, definition):
    base = {"num_hidden_layers": LAYERS} | ({"no_rope_layers": [1, 0] * 3} if family == "smollm3" else {})
    model = tiny_model(family, base=base, window=4, evict_fraction=0.5, eviction="snapkv")
    found, shares = [], []
    for with_adapter in (True, False):
        with nullcontext() if with_adapter else model.disable_adapter():
            rollouts = ragged_rollouts(model, max_new_tokens=12, temperature=0.7, seed=3)
            assert any(rollout.evictions for rollout in rollouts)
            with torch.no_grad():
                for rollout, fast in zip(rollouts, deep_tokens(model, rollouts, definition), strict=True):
                    depths = naive_settling_depths(naive_logits(model, rollout, norm=definition.norm), definition)
                    assert fast == [depth >= definition.deep_from(LAYERS) for depth in depths]
                    assert sum(fast) / len(fast) == naive_ratio(depths, LAYERS, definition)
                    shares.append(naive_ratio(depths, LAYERS, definition))
                    found += depths
    assert len(set(found)) > 2, "tokens settle at different layers"
    assert 0 < sum(shares) < len(shares)


def test_a_beginning_has_the_tokens_of_the_whole():
    model = tiny_model(base={"num_hidden_layers": LAYERS}, window=4, evict_fraction=0.5, state_rule="gated")
    rollouts = ragged_rollouts(model, max_new_tokens=12, seed=3)
    whole = deep_tokens(model, rollouts, DEFINITIONS[0])
    assert 0 < sum(map(sum, whole)) < sum(map(len, whole))
    for count in (1, 4, 5, 6, 12, 63):
        assert deep_tokens(model, rollouts, DEFINITIONS[0], num_tokens=count) == [row[:count] for row in whole]
        one_by_one = [deep_tokens(model, [one], DEFINITIONS[0], num_tokens=count)[0] for one in rollouts]
        assert one_by_one == [row[:count] for row in whole]


def test_by_hand():
    """Two tokens of a vocabulary of two, three layers; the last one is sure of the first word."""
    sure, even, other = [9.0, -9.0], [0.0, 0.0], [-9.0, 9.0]
    logits = torch.tensor([[other, even], [other, sure], [sure, sure]], dtype=torch.float64)
    # Against certainty an even prediction is at h(1/4) - 1/2 = 0.311 bits, the other word at 1 bit.
    assert naive_settling_depths(logits, DeepThinking()) == [3, 1]
    assert naive_settling_depths(logits, DeepThinking(threshold=0.3)) == [3, 2]
    nats = 0.3113 * math.log(2)
    assert naive_settling_depths(logits, DeepThinking(threshold=nats + 0.001, log_base="e")) == [3, 1]
    assert naive_settling_depths(logits, DeepThinking(threshold=nats - 0.001, log_base="e")) == [3, 2]
    assert naive_ratio([3, 1], 3, DeepThinking()) == 0.5


def test_which_layers_are_deep():
    assert DeepThinking().deep_from(30) == 26
    assert DeepThinking(reading="algorithm").deep_from(30) == 5
    assert DeepThinking(reading="algorithm").deep_from(20) == 3, "0.15 * 20 is three, whatever floats say"
    with pytest.raises(ValueError, match="counts every one of 4 layers as deep"):
        DeepThinking(reading="algorithm").deep_from(4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.0}, r"threshold must be between 0 and 1, .* got 1.0"),
        ({"threshold": 0.7, "log_base": "e"}, r"between 0 and 0.693"),
        ({"depth": 1.0}, "depth must be a share of the layers"),
        ({"reading": "both"}, "reading"),
        ({"log_base": "10"}, "log_base"),
    ],
)
def test_a_definition_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DeepThinking(**settings)
