"""The anatomy of states: figures are those of the recorded states, and weights of tokens those of what they wrote."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from support.models import adapt, tiny_base, tiny_model
from support.texts import texts_of
from thoughtcache.policy.handle import find_tuner
from thoughtcache.sampler.given import given_text, rollouts_of_given
from thoughtcache.state.absorb import token_weights
from thoughtcache.state.encoder import ThoughtEncoder
from thoughtcache.state.rules import STATE_RULES
from thoughtcache.state.rules.naive_common import projected, projected_queries, rms
from thoughtcache.studies.anatomy import by_thought, effective_rank, half_of, probe_anatomy

ATTENTION: dict[str, Any] = {"memory": "attention", "memory_features": 6}
BOTH: dict[str, Any] = {"memory": "both", "memory_features": 6}


def rank_by_loop(matrix: torch.Tensor) -> float:
    """From the eigenvalues of the smaller Gram matrix."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = [math.sqrt(max(0.0, value)) for value in torch.linalg.eigvalsh(gram).tolist()]
    return math.exp(-sum(value / sum(values) * math.log(value / sum(values)) for value in values if value > 1e-9))


def test_effective_ranks_by_hand():
    assert effective_rank(torch.eye(4)).item() == pytest.approx(4.0)
    assert effective_rank(torch.ones(2, 5)).item() == pytest.approx(1.0)
    assert effective_rank(torch.zeros(3, 2)).item() == 0.0
    two = torch.diag(torch.tensor([3.0, 1.0]))  # shares 3/4 and 1/4
    assert effective_rank(two).item() == pytest.approx(4 / 3**0.75)


def test_halves_and_places_by_hand():
    shares = torch.tensor([[0.1, 0.5, 0.0, 0.4], [0.25, 0.25, 0.25, 0.25], [0.2, 0.2, 0.3, 0.3]])
    assert half_of(shares, 4).tolist() == [0.25, 0.5, 0.5]
    assert half_of(torch.zeros(1, 4), 3).tolist() == [1.0]
    thoughts = torch.tensor([[[0, 2], [1, 2]]])  # another thought in each of two heads
    assert by_thought(torch.tensor([[[3.0, 1.0], [5.0, 7.0]]]), thoughts, 4).tolist() == [[[3, 0, 1, 0], [0, 5, 7, 0]]]
    assert by_thought(torch.tensor([[[4.0, 2.0]]]), thoughts, 4).tolist() == [[[2, 2, 2, 0]]]


@pytest.mark.parametrize(
    "options", [{}, ATTENTION, BOTH, {**BOTH, "eviction": "h2o"}, {**BOTH, "eviction": "h2o", "positions": "rolling"}]
)
def test_figures_are_those_of_the_recorded_states(options):
    """Norm, rank and drift of every layer and head after every eviction, from the sampler's states, one by one."""
    model, texts, told = tiny_model(window=5, evict_fraction=0.4, **options), texts_of(5), []
    found = probe_anatomy(model, texts, batch_size=2, progress=told.append)
    assert told == [2, 2, 1]
    tuner = find_tuner(model)
    cache = tuner.thought_config.resolve_window(None)
    states = [
        one.states
        for row, text in enumerate(texts)
        for one in rollouts_of_given(model, [given_text(*text, cache, seed=row)])
    ]
    start = [state[0] for state in tuner.initial_states()]
    expected_memories = {"adapter": ["adapter"], "attention": ["attention"], "both": ["adapter", "attention"]}
    assert list(found.written) == expected_memories[tuner.thought_config.memory]
    assert len(found.states) == 2 * (("adapter" in found.written) + 2 * ("attention" in found.written))
    for one in found.states:

        def matrix(state: torch.Tensor, one: Any = one) -> torch.Tensor:
            if one.memory == "adapter":
                return state.flatten()[:15].view(5, 3)
            return state.flatten()[-60:].view(2, 6, 5)[one.head, :, :4]

        norms: list[list[float]] = []
        for rollout in states:
            before = matrix(start[one.layer])
            for event, after in enumerate(rollout[:, one.layer]):
                now = matrix(after)
                if len(norms) <= event:
                    norms.append([0.0, 0.0, 0.0])
                norms[event][0] += now.norm().item() / 5
                norms[event][1] += rank_by_loop(now) / 5
                norms[event][2] += (now - before).norm().item() / now.norm().item() / 5
                before = now
        assert one.norms == pytest.approx([values[0] for values in norms])
        assert one.ranks == pytest.approx([values[1] for values in norms])
        assert one.drifts == pytest.approx([values[2] for values in norms])


@pytest.mark.parametrize(
    "options", [{}, {"eviction": "snapkv"}, {"eviction": "snapkv", "positions": "rolling"}, {"memory_keys": "rotated"}]
)
def test_weights_are_what_the_counts_of_the_state_grow_by(options):
    """One token leaves at a time and everything that was written stays: the last column tells how much it was."""
    model, texts = tiny_model(**ATTENTION, **options), texts_of(3, length=12)
    found = probe_anatomy(model, texts)
    cache = find_tuner(model).thought_config.resolve_window(None)
    for row, text in enumerate(texts):
        (rollout,) = rollouts_of_given(model, [given_text(*text, cache, seed=row)])
        counts = rollout.states[..., -1].sum(dim=-1)  # [N, L, H]
        grown = counts - torch.cat([torch.zeros_like(counts[:1]), counts[:-1]])
        shares, heads = [0.0] * len(text[1]), counts.shape[1] * counts.shape[2]
        for layer in range(counts.shape[1]):
            for head in range(counts.shape[2]):
                resident = list(range(5))
                for event, eviction in enumerate(rollout.evictions):
                    slot = 0 if eviction.slots is None else int(eviction.slots[layer, head, 0])
                    thought = resident.pop(slot)
                    resident.append(5 + event)
                    shares[thought] += (grown[event, layer, head] / counts[-1, layer, head]).item() / heads
        assert found.written["attention"][row] == pytest.approx(shares, abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("rule", sorted(STATE_RULES))
def test_weights_of_tokens_by_loops(rule):
    torch.manual_seed(3)
    encoder = ThoughtEncoder(layer_index=0, kv_size=6, num_global_tokens=3, rank=2, rule=rule, dtype=torch.float64)
    if rule in ("gated", "delta"):
        encoder.get_parameter("gate").normal_()
    keys, values = torch.randn(1, 2, 4, 3, dtype=torch.float64), torch.randn(1, 2, 4, 3, dtype=torch.float64)
    Q = projected_queries(encoder)
    contents, gates = [], []
    for token in range(4):
        k, v = keys[0, :, token].flatten(), values[0, :, token].flatten()
        contents.append(Q @ projected(encoder.key_projection, rms(k)))
        gate = 1.0
        if rule in ("gated", "delta"):
            w_g, b_0 = encoder.get_parameter("gate"), encoder.get_parameter("gate_bias")
            logit = (w_g * torch.cat([rms(k), rms(v)])).sum() + b_0 + encoder.log_write_scale
            gate = float(1 / (1 + (-logit).exp()))
        gates.append(gate)
    if rule == "softmax":
        weights = [[(content / 2**0.5).exp() for content in column] for column in torch.stack(contents).T]
        expected = [sum(float(row[token] / sum(row)) for row in weights) for token in range(4)]
    else:
        expected = [gate * float(content.abs().sum()) for gate, content in zip(gates, contents, strict=True)]
    found = token_weights(encoder.weights(), keys, values, rule=rule)
    assert found[0].tolist() == pytest.approx(expected)


def test_what_has_no_states_is_refused():
    plain = adapt(tiny_base(), initial_state="identity", absorb=False, num_global_tokens=3)
    with pytest.raises(ValueError, match="no eviction changes the states of this adapter"):
        probe_anatomy(plain, texts_of(2))
    model = tiny_model()
    with pytest.raises(ValueError, match="all 6 thoughts stay in window=5, and nothing is evicted; give longer texts"):
        probe_anatomy(model, texts_of(2, length=6))
    with pytest.raises(ValueError, match="equally long, got 13 to 14 tokens"):
        probe_anatomy(model, [*texts_of(1, 14), *texts_of(1, 13)])
    with pytest.raises(ValueError, match="no texts were given"):
        probe_anatomy(model, [])
