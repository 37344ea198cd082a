"""Attention transfer: the outputs under the window are those of the policy, the loss is what its name says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import thoughtcache as tc
from support.models import tiny_model, use_norms_without_fp32
from support.rollouts import PROMPTS
from thoughtcache.policy.handle import find_tuner
from thoughtcache.sampler.given import each_with_own_evictions, with_own_evictions
from thoughtcache.state.attention.weights import MEMORIES
from thoughtcache.train.transfer.config import TransferConfig
from thoughtcache.train.transfer.teach import attention_shares, choose_once, scale_weights, texts_that_evict

LENGTHS = (14, 9, 11, 12)
CASES: dict[str, dict[str, Any]] = {
    "balanced": {},
    "joint": {"memory_read": "joint"},
    "added, delta": {"memory_read": "added", "memory_write": "delta", "memory_feature_map": "unit"},
    "rotated keys": {"memory_keys": "rotated"},
    "rolling": {"positions": "rolling"},
    "chosen thoughts": {"eviction": "random", "evict_fraction": 0.4},
    "chosen thoughts, rolling": {"eviction": "random", "positions": "rolling", "evict_fraction": 0.4},
    "both memories": {"memory": "both"},
}


def memory_model(layers: int = 1, **config: Any) -> Any:
    """A tiny model whose factors of the linears are zero, so that queries, keys and values are the base's."""
    memory = {"memory": "attention", "memory_features": 6, **config}
    model = tiny_model(base={"num_hidden_layers": layers}, **memory)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
            if "log_weight" in name:
                parameter.add_(0.3)
    use_norms_without_fp32(model)
    return model


def texts(model: Any, lengths: tuple[int, ...] = LENGTHS) -> list[tc.Rollout]:
    """Texts of the base with the full cache."""
    with model.disable_adapter():
        return [
            tc.rollout(model, [prompt], max_new_tokens=length, seed=row, ignore_eos=True, window=None)[0]
            for row, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
        ]


def outputs(model: Any, run: Any, layer: int = 0) -> Tensor:
    """What comes out of the output projection of a layer while `run` runs, token after token."""
    found: list[Tensor] = []
    projection = find_tuner(model).backbone.layers[layer].self_attn.o_proj
    handle = projection.register_forward_hook(lambda module, inputs, output: found.append(output[0].detach()))
    with torch.no_grad():
        run()
    handle.remove()
    return torch.cat(found)


def naive_shares(model: Any, rows: list[tc.Rollout], layer: int = 0) -> tuple[float, float]:
    """Errors of one layer with the memory and without, from the naive execution of the policy, text by text."""
    left = lost = 0.0
    for row in rows:
        with model.disable_adapter():
            whole = row.__class__(**{**fields(row), "settings": row.settings.with_full_cache(), "evictions": ()})
            full = outputs(model, lambda whole=whole: tc.naive_logprobs(model, [whole]), layer)
            alone = outputs(model, lambda row=row: tc.naive_logprobs(model, [row]), layer)
        remembering = outputs(model, lambda row=row: tc.naive_logprobs(model, [row]), layer)
        first = len(row.prompt_ids) + row.evictions[0].before_token
        left += (remembering - full)[first:].square().sum().item()
        lost += (alone - full)[first:].square().sum().item()
    return left, lost


def fields(row: tc.Rollout) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_policy(case):
    """In the first layer, whose inputs do not depend on what attention forgot, both are the same numbers."""
    model = memory_model(**CASES[case])
    rows = texts_that_evict(model, texts(model))
    shares = attention_shares(model, model, rows)
    left, lost = naive_shares(model, list(with_own_evictions(model, rows)))
    # transformers forms angles in fp32; keys that are moved afterwards differ from those that were turned once.
    tolerance = 1e-6 if CASES[case].get("positions") == "rolling" else 1e-12
    assert left != pytest.approx(lost, rel=1e-2)
    assert shares.left.item() == pytest.approx(left, rel=tolerance)
    assert shares.lost.item() == pytest.approx(lost, rel=tolerance)
    assert shares.given_back.item() == pytest.approx(1 - left / lost, rel=10 * tolerance)


@pytest.mark.parametrize("positions", ["absolute", "rolling"])
@pytest.mark.parametrize("budgets", [[3, 7], [7, 3], [[3, 7], [5, 5]], [[5, 7], [3, 5]]], ids=str)
@pytest.mark.parametrize("eviction", ["sliding", "random"])
def test_uneven_budgets(eviction, budgets, positions):
    """A first layer, and heads of it, of the smaller and of the larger budget: what is not full loses nothing."""
    model = memory_model(layers=2, eviction=eviction, eviction_budgets=budgets, positions=positions)
    rows = texts_that_evict(model, texts(model))
    shares = attention_shares(model, model, rows)
    left, lost = naive_shares(model, list(with_own_evictions(model, rows)))
    tolerance = 1e-6 if positions == "rolling" else 1e-12
    assert left != pytest.approx(lost, rel=1e-2)
    assert shares.left[0].item() == pytest.approx(left, rel=tolerance)
    assert shares.lost[0].item() == pytest.approx(lost, rel=tolerance)


def test_every_layer_learns_for_itself():
    """Inputs of a layer are the base's with its full cache, whatever the memories of the others say."""
    model = memory_model(layers=2)
    rows = texts_that_evict(model, texts(model))
    before = attention_shares(model, model, rows)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if MEMORIES in name and "layers.0." in name:
                parameter.mul_(1.5)
    after = attention_shares(model, model, rows)
    assert after.left[1] == before.left[1]
    assert after.left[0] != before.left[0]
    assert torch.equal(after.lost, before.lost)


@pytest.mark.parametrize("case", ["balanced", "joint", "added, delta"])
def test_gradient_is_that_of_finite_differences(case):
    model = memory_model(layers=2, **CASES[case])
    rows = texts_that_evict(model, texts(model))

    def loss() -> Tensor:
        return (1 - attention_shares(model, model, rows).given_back).mean()

    loss().backward()
    moved = 0
    for name, parameter in model.named_parameters():
        if MEMORIES not in name:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        entry, step = parameter.data.view(-1), 1e-6
        index = parameter.grad.abs().argmax().item()
        old = entry[index].item()
        values = []
        for sign in (1, -1):
            entry[index] = old + sign * step
            values.append(loss().item())
        entry[index] = old
        expected = (values[0] - values[1]) / (2 * step)
        assert parameter.grad.view(-1)[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-9), name
        moved += expected != 0
    assert moved >= 8


def test_training_gives_back_what_was_lost(tmp_path):
    """And trains the memory alone, from a checkpoint on as without one."""
    model = memory_model(layers=2, memory_weight=3.0)
    rows = texts(model)
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if MEMORIES not in name}
    before = attention_shares(model, model, texts_that_evict(model, rows)).given_back.mean().item()
    options: dict[str, Any] = {"num_steps": 12, "batch_size": 2, "warmup_steps": 1, "save_every": 5, "log_every": 1}
    config = TransferConfig(output_dir=str(tmp_path), **options)
    result = tc.transfer_attention(model, rows, config)
    after = attention_shares(model, model, texts_that_evict(model, rows)).given_back.mean().item()
    assert after > before + 0.02
    assert math.isfinite(result.history[0]["loss"])
    assert all(torch.equal(kept[name], p) for name, p in model.named_parameters() if name in kept)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)

    again = memory_model(layers=2, memory_weight=3.0)
    resumed = TransferConfig(output_dir=str(tmp_path), resume=str(tmp_path / "checkpoint-10"), **options)
    tc.transfer_attention(again, rows, resumed)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_weights_are_scaled_to_what_serves_best():
    model = memory_model(layers=2, memory_weight=30.0)
    rows = texts_that_evict(model, texts(model))
    weights = [layer.log_weight for layer in find_tuner(model).memory_weights()]
    start = [weight.detach().clone() for weight in weights]
    scales = scale_weights(model, rows)
    assert max(scales) < 1
    for weight, before, scale in zip(weights, start, scales, strict=True):
        assert torch.allclose(weight.exp(), scale * before.exp(), rtol=1e-12)
    best = attention_shares(model, model, rows).left
    for other in (0.3, 3.0):
        with torch.no_grad():
            for weight in weights:
                weight.add_(math.log(other))
            assert (attention_shares(model, model, rows).left >= best).all()
            for weight in weights:
                weight.sub_(math.log(other))
    assert scale_weights(model, rows) == [1.0, 1.0]


def test_what_leaves_is_chosen_once_by_the_base():
    """Without the memory, text by text as together; where the oldest leave nothing is chosen."""
    model = memory_model(layers=2, eviction="h2o", memory_weight=5.0)
    rows = texts_that_evict(model, texts(model))
    chosen = choose_once(model, rows)
    for row, text in zip(chosen, rows, strict=True):
        assert row.token_ids == text.token_ids
        with model.disable_adapter():
            (alone,) = with_own_evictions(model, [text])
        for one, other in zip(row.evictions, alone.evictions, strict=True):
            assert one.slots is not None
            assert torch.equal(one.slots, other.slots)
    sliding = memory_model(layers=2)
    rows = texts_that_evict(sliding, texts(sliding))
    assert choose_once(sliding, rows) == rows


def test_a_few_texts_at_a_time_choose_what_each_chooses_alone():
    model = memory_model(layers=2, eviction="h2o", memory_weight=5.0)
    rows = texts_that_evict(model, texts(model))
    assert len(rows) > 2
    for row, text in zip(each_with_own_evictions(model, rows, batch_size=2), rows, strict=True):
        (alone,) = with_own_evictions(model, [text])
        assert row.token_ids == text.token_ids
        assert all(
            torch.equal(one.slots, other.slots) for one, other in zip(row.evictions, alone.evictions, strict=True)
        )


def test_chosen_thoughts_are_given_back_too(tmp_path):
    model = memory_model(layers=2, eviction="h2o", memory_weight=3.0)
    rows = choose_once(model, texts_that_evict(model, texts(model)))
    config = TransferConfig(output_dir=str(tmp_path), num_steps=12, batch_size=2, warmup_steps=1, log_every=1)
    result = tc.transfer_attention(model, texts(model), config)
    losses = [record["loss"] for record in result.history if "loss" in record]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.05
    assert all(row.evictions[0].slots is not None for row in rows)


def test_what_cannot_be_transferred_is_refused(tmp_path):
    config = TransferConfig(output_dir=str(tmp_path), num_steps=1)
    paper = tiny_model()
    with pytest.raises(ValueError, match=r"memory='adapter'.*memory='attention'"):
        tc.transfer_attention(paper, texts(paper), config)
    model = memory_model()
    with pytest.raises(ValueError, match="the longest has 5 tokens under window=5; give longer texts"):
        tc.transfer_attention(model, texts(model, (5, 3, 4, 2)), config)
    with pytest.raises(ValueError, match="no rollouts were given"):
        tc.transfer_attention(model, [], config)
