"""The memory in attention space: sampling, replay and loops agree in values and gradients, however it is configured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients, padded, weighted_loss
from support.grpo import base_with_eos, make_trainer
from support.models import FAMILIES, adapt, tiny_model, use_norms_without_fp32
from support.rollouts import PROMPTS, ragged_rollouts
from thoughtcache.cache.eviction import EVICTION_POLICIES
from thoughtcache.learner import reverse
from thoughtcache.policy.handle import find_tuner
from thoughtcache.sampler import decode_step
from thoughtcache.state.attention.features import FEATURE_MAPS
from thoughtcache.state.attention.writes import WRITE_RULES

LENGTH = 24
STOPS = [3, 7]
OPTIONS: dict[str, dict[str, Any]] = {
    **{f"write {name}": {"memory_write": name} for name in WRITE_RULES},
    "hedgehog": {"memory_feature_map": "hedgehog"},
    "added": {"memory_read": "added"},
    "unit features, added, delta": {"memory_feature_map": "unit", "memory_read": "added", "memory_write": "delta"},
    "rotated": {"memory_keys": "rotated"},
    "rolling": {"positions": "rolling"},
    "rolling, rotated": {"positions": "rolling", "memory_keys": "rotated"},
    "random": {"eviction": "random"},
    "random, rolling": {"positions": "rolling", "eviction": "random"},
    "random, rotated, delta": {"eviction": "random", "memory_keys": "rotated", "memory_write": "delta"},
    "snapkv, rolling, decay": {"eviction": "snapkv", "positions": "rolling", "memory_write": "decay", "window": 8},
    "h2o": {"eviction": "h2o", "window": 8},
    "tova, joint, delta": {"eviction": "tova", "window": 8, "memory_read": "joint", "memory_write": "delta"},
    "h2o, rolling": {"eviction": "h2o", "positions": "rolling", "window": 8},
    "joint": {"memory_read": "joint"},
    "joint, rolling, hedgehog, decay": {
        "memory_read": "joint",
        "positions": "rolling",
        "memory_feature_map": "hedgehog",
        "memory_write": "decay",
    },
    "both": {"memory": "both"},
    "both, random": {"memory": "both", "eviction": "random"},
    "both, rolling, delta, norm at the read": {
        "memory": "both",
        "positions": "rolling",
        "memory_write": "delta",
        "state_rule": "delta",
        "state_norm_at": "read",
    },
}


def make(family: str = "llama", **options: Any) -> Any:
    settings = {"memory": "attention", "memory_features": 6, "window": 5, "evict_fraction": 0.4, **options}
    return tiny_model(family, **settings)


def memory_states(rollouts: list[tc.Rollout]) -> float:
    """Largest number that a recorded memory holds."""
    return max(r.states.abs().max().item() for r in rollouts if r.states is not None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OPTIONS)
def test_executions_agree(name, family):
    """Ragged prompts and lengths, slots that are refilled, evictions at different times."""
    model = make(family, **OPTIONS[name])
    rollouts = tc.rollout(model, [*PROMPTS, *PROMPTS], max_new_tokens=LENGTH, seed=4, stop_ids=STOPS, batch_size=3)
    assert len({len(rollout.token_ids) for rollout in rollouts}) > 1
    assert memory_states(rollouts) > 0.1
    with torch.no_grad():
        assert_close(tc.naive_logprobs(model, rollouts).logprobs, padded(rollouts))
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts))
        assert_close(tc.replay(model, rollouts, anchored=False, chunk_tokens=2).logprobs, padded(rollouts))


@pytest.mark.parametrize("name", ["write linear", "write delta", "added", "rolling", "random", "random, rolling"])
def test_the_memory_matters(name):
    """Without what it remembers the scores are others, so that agreement says something."""
    model = make(**OPTIONS[name])
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, seed=4, ignore_eos=True)
    with torch.no_grad():
        kept = tc.replay(model, rollouts, anchored=False).logprobs
        for layer in find_tuner(model).memory_weights():
            layer.log_weight.fill_(-60.0)
        empty = tc.replay(model, rollouts, anchored=False).logprobs
    assert (kept - empty).abs().max() > 1e-2


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_those_of_the_loops(name):
    """Plain autograd and reverse segments, whole and in pieces, with and without recorded states."""
    model = make(**OPTIONS[name])
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=13, prompts=PROMPTS[:3], seed=2)
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts)))
    parameters = {key.rsplit(".", 2)[-1] for key in expected if "lora_thought_memory" in key}
    assert {"key_features", "query_features", "gate", "gate_bias", "log_weight"} <= parameters
    assert all(value.abs().max() > 0 for key, value in expected.items() if "lora_thought_memory" in key)
    for options in ({"recompute": False}, {}, {"chunk_tokens": 2, "anchored": False}, {"checkpoint_layers": True}):
        found = gradients(model, lambda o=options: weighted_loss(tc.replay(model, rollouts, **o)))
        assert_gradients_match(found, expected)


@pytest.mark.parametrize("gradient", ["detached", 2])
@pytest.mark.parametrize("name", ["write linear", "write delta"])
def test_cut_gradients_are_those_of_the_loops(name, gradient):
    model = make(**OPTIONS[name])
    use_norms_without_fp32(model)
    rollouts = ragged_rollouts(model, max_new_tokens=13, prompts=PROMPTS[:3], seed=2)
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts, gradient=gradient)))
    found = gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, gradient=gradient)))
    assert_gradients_match(found, expected)


@pytest.mark.parametrize("name", ["write linear", "write delta", "random", "random, rolling"])
def test_records_of_sampling_replace_the_forward_pass(name, monkeypatch):
    model = make(**OPTIONS[name])
    use_norms_without_fp32(model)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, seed=4, stop_ids=STOPS, record_kv="device")
    expected = gradients(model, lambda: weighted_loss(tc.replay(model, rollouts)))
    runs: list[bool] = []
    run_chunk = reverse.run_chunk
    monkeypatch.setattr(
        reverse, "run_chunk", lambda *a, **k: runs.append(torch.is_grad_enabled()) or run_chunk(*a, **k)
    )
    found = gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, reuse=True)))
    assert_gradients_match(found, expected)
    assert runs
    assert all(runs), "the forward pass ran although it was recorded"


@pytest.mark.parametrize("name", OPTIONS)
def test_a_row_is_alone_what_it_is_in_a_batch(name):
    model = make(**OPTIONS[name])
    seeds = list(range(4, 4 + len(PROMPTS)))
    together = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, seed=seeds, ignore_eos=True)
    for rollout, prompt in zip(together, PROMPTS, strict=True):
        (alone,) = tc.rollout(model, [prompt], max_new_tokens=LENGTH, seed=[rollout.settings.seed], ignore_eos=True)
        assert alone.token_ids == rollout.token_ids
        assert_close(alone.states, rollout.states)


@pytest.mark.parametrize("name", OPTIONS)
def test_static_shapes_are_the_same_policy(name, monkeypatch):
    """The functions as they are; test_compiled.py compiles them."""
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: function)
    model = make(**OPTIONS[name])
    options: dict[str, Any] = {"max_new_tokens": LENGTH, "seed": 2, "stop_ids": STOPS, "batch_size": 3}
    found = tc.rollout(model, [*PROMPTS, *PROMPTS], compile=True, **options)
    expected = tc.rollout(model, [*PROMPTS, *PROMPTS], **options)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    assert_close(padded(found), padded(expected))


@pytest.mark.parametrize("name", OPTIONS)
def test_generate_is_the_same_policy(name):
    """Prompts of unequal lengths, padded; greedy tokens hang on the memory."""
    model = make(**OPTIONS[name])
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, temperature=0.0, ignore_eos=True)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    config = GenerationConfig(
        do_sample=False, max_new_tokens=LENGTH, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    tokens = out.sequences[:, width:]
    assert tokens.tolist() == [rollout.token_ids for rollout in rollouts]
    logprobs = torch.stack(out.logits, dim=1).double().log_softmax(dim=-1)
    # transformers hands out logits in fp32.
    assert_close(logprobs.gather(2, tokens[:, :, None])[:, :, 0], padded(rollouts), torch.float32)
    assert find_tuner(model).model.config._attn_implementation == "sdpa"


def test_what_was_never_evicted_is_plain_lora():
    """With the full cache, and inside `disable_adapter`, nothing is remembered and nothing is read."""
    model = make()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad(), tc.full_cache(model):
        full = model(input_ids=ids).logits
        for layer in find_tuner(model).memory_weights():
            layer.log_weight.fill_(9.0)
        assert_close(model(input_ids=ids).logits, full)
    with torch.no_grad(), model.disable_adapter():
        (base,) = tc.rollout(model, PROMPTS[:1], max_new_tokens=LENGTH, seed=1, ignore_eos=True)
        assert base.states is None
        assert_close(tc.naive_logprobs(model, [base]).logprobs, padded([base]))


@pytest.mark.parametrize("policy", sorted(EVICTION_POLICIES))
def test_content_keys_are_the_same_wherever_a_chosen_thought_stands(policy):
    """Absolute and rolling positions un-rotate what leaves to the same keys, so that without reads states are equal.

    The first choice meets the same window under both; behind it attention differs, and so may the choices.
    """
    states = []
    for positions in ("absolute", "rolling"):
        model = make(eviction=policy, window=8, positions=positions)
        (rollout,) = tc.rollout(model, PROMPTS[:1], max_new_tokens=9 + 1, seed=1, ignore_eos=True)
        assert len(rollout.evictions) == 1
        states.append(rollout.states)
    assert_close(states[0], states[1])


@pytest.mark.parametrize("policy", sorted(name for name, one in EVICTION_POLICIES.items() if one.chooses))
def test_gaps_are_counted(policy):
    """After several choices the positions are those of the loops, which carry one with every token."""
    model = make(eviction=policy, window=8, memory_write="delta")
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=40, seed=3, ignore_eos=True)
    with torch.no_grad():
        assert_close(tc.naive_logprobs(model, rollouts).logprobs, padded(rollouts))
        assert_close(tc.replay(model, rollouts, anchored=False).logprobs, padded(rollouts))


@pytest.mark.parametrize("write", sorted(WRITE_RULES))
@pytest.mark.parametrize("features", sorted(FEATURE_MAPS))
def test_a_step_of_grpo(write, features, tmp_path):
    """The trainer's own check of the sampled against the scored policy stays at rounding; every parameter moves."""
    read = "balanced" if FEATURE_MAPS[features].is_positive else "added"
    options = {"memory_write": write, "memory_feature_map": features, "memory_read": read, "memory_features": 6}
    base = base_with_eos(dtype=torch.float32)
    model = adapt(base, window=6, evict_fraction=0.4, memory="attention", **options)
    before = {name: p.clone() for name, p in model.named_parameters() if "lora_thought_memory" in name}
    trainer = make_trainer(model, tmp_path, max_steps=1)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "policy/gap_max" in entry)
    assert log["cache/evictions"] > 0
    assert log["policy/gap_max"] < 1e-4
    after = dict(model.named_parameters())
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
