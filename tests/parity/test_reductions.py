"""Points of the configuration space that are something known (plain LoRA, base, full cache), bit for bit."""

from __future__ import annotations

import peft
import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close, padded
from support.models import FAMILIES, adapt, randomise_adapter, tiny_base, tiny_model
from support.rollouts import PROMPTS

PLAIN_LORA = {"initial_state": "identity", "absorb": False, "r": 5, "num_global_tokens": 5, "lora_alpha": 7}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])
LEFT_PADDED = torch.tensor([[1] * 8, [0] * 3 + [1] * 5])


def lora_twin(model: peft.PeftModel, family: str, dtype: torch.dtype) -> peft.PeftModel:
    """PEFT's own LoRA with the weights of `model`."""
    config = peft.LoraConfig(r=5, lora_alpha=7, target_modules="all-linear", task_type="CAUSAL_LM")
    twin = peft.get_peft_model(tiny_base(family, dtype=dtype), config).eval()
    missing = twin.load_state_dict(model.state_dict(), strict=True)
    assert not missing.missing_keys
    return twin


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_identity_state_is_lora(family, dtype):
    model = tiny_model(family, dtype=dtype, window=None, **PLAIN_LORA)
    twin = lora_twin(model, family, dtype)
    with torch.no_grad():
        ours = model(input_ids=IDS, attention_mask=LEFT_PADDED).logits
        theirs = twin(input_ids=IDS, attention_mask=LEFT_PADDED).logits
        base = model.base_model.model
        with model.disable_adapter():
            plain = base(input_ids=IDS, attention_mask=LEFT_PADDED).logits
    assert torch.equal(ours, theirs)
    assert (ours - plain).abs().max() > 1e-2, "the adapter does nothing: the comparison was vacuous"


@pytest.mark.parametrize("family", FAMILIES)
def test_full_cache_and_identity_state_score_like_a_forward_of_lora(family):
    model = tiny_model(family, window=None, **PLAIN_LORA)
    twin = lora_twin(model, family, torch.float64)
    rollouts = tc.rollout(model, [PROMPTS[0]] * 2, max_new_tokens=15, temperature=0.7)
    assert rollouts[0].states is None
    assert rollouts[0].evictions == ()
    ids = torch.tensor([rollout.prompt_ids + rollout.token_ids for rollout in rollouts])
    with torch.no_grad():
        logits = twin(input_ids=ids[:, :-1], use_cache=False).logits[:, len(PROMPTS[0]) - 1 :] / 0.7
        replayed = tc.replay(model, rollouts).logprobs
    chosen = logits.gather(-1, ids[:, len(PROMPTS[0]) :, None])
    expected = (chosen - logits.logsumexp(-1, keepdim=True)).squeeze(-1)
    assert torch.equal(replayed, expected)
    assert_close(padded(rollouts), expected)


@pytest.mark.parametrize("window", [13, 14, 100])
def test_a_window_that_is_never_full_is_the_full_cache(window):
    # 14 thoughts have 13 inputs: a window of 13 holds them all.
    model = tiny_model()
    full = tc.rollout(model, PROMPTS, max_new_tokens=14, window=None)
    wide = tc.rollout(model, PROMPTS, max_new_tokens=14, window=window)
    for one, other in zip(full, wide, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.equal(one.logprobs, other.logprobs)
        assert other.evictions == ()
    with torch.no_grad():
        assert torch.equal(tc.replay(model, full).logprobs, tc.replay(model, wide).logprobs)


def test_a_full_cache_reference_ignores_the_window():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=14)
    assert rollouts[0].evictions
    with torch.no_grad():
        found = tc.replay(model, rollouts, full_cache=True).logprobs
        model.peft_config["default"].window = None
        free = [tc.Rollout(**{**{f: getattr(r, f) for f in r.__dataclass_fields__}, "evictions": ()}) for r in rollouts]
        assert torch.equal(tc.replay(model, free, full_cache=True).logprobs, found)
        ids = torch.tensor([rollouts[0].prompt_ids + rollouts[0].token_ids])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, len(PROMPTS[0]) - 1 :]
    expected = logits.log_softmax(-1).gather(-1, ids[:, len(PROMPTS[0]) :, None]).squeeze(-1)
    assert_close(found[0], expected[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", ["linear", "gated"])
def test_a_new_adapter_leaves_the_base_logits_as_they_are(rule, dtype):
    base = tiny_base(dtype=dtype)
    with torch.no_grad():
        expected = base(input_ids=IDS, attention_mask=LEFT_PADDED).logits
        model = adapt(base, randomise=False, state_rule=rule, window=8)
        assert torch.equal(model(input_ids=IDS, attention_mask=LEFT_PADDED).logits, expected)
        randomise_adapter(model)
        assert not torch.equal(model(input_ids=IDS, attention_mask=LEFT_PADDED).logits, expected)


def test_a_new_adapter_changes_no_rollout_of_a_bounded_cache():
    # A = 0: the state evolves, but nothing reads it.
    base = tiny_base()
    fresh = adapt(base, randomise=False)
    rollouts = tc.rollout(fresh, PROMPTS, max_new_tokens=14)
    assert rollouts[0].states is not None
    with fresh.disable_adapter():
        disabled = tc.rollout(fresh, PROMPTS, max_new_tokens=14)
    assert disabled[0].states is None
    for one, other in zip(rollouts, disabled, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.equal(one.logprobs, other.logprobs)


@pytest.mark.parametrize("config", [{}, PLAIN_LORA], ids=["thought", "lora"])
def test_disabled_adapter_is_the_base_model(config):
    base = tiny_base()
    with torch.no_grad():
        expected = base(input_ids=IDS, attention_mask=LEFT_PADDED).logits
        model = adapt(base, **config, window=8)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=IDS, attention_mask=LEFT_PADDED).logits, expected)
        assert not torch.equal(model(input_ids=IDS, attention_mask=LEFT_PADDED).logits, expected)


@pytest.mark.parametrize("eviction", ["sliding", "random"])
def test_disabled_adapter_is_the_base_model_in_every_execution(eviction):
    model = tiny_model(eviction=eviction)
    silent = tiny_model(eviction=eviction, randomise=False)  # the same base with A = 0
    sampled = tc.rollout(model, PROMPTS, max_new_tokens=12)
    with torch.no_grad():
        with model.disable_adapter():
            rollouts = tc.rollout(model, PROMPTS, max_new_tokens=12)
            replayed = tc.replay(model, sampled).logprobs
            naive = tc.naive_logprobs(model, sampled).logprobs
        assert torch.equal(replayed, tc.replay(silent, sampled).logprobs)
        assert_close(naive, replayed)
        assert (replayed - tc.replay(model, sampled).logprobs).abs().max() > 1e-2
    for one, other in zip(rollouts, tc.rollout(silent, PROMPTS, max_new_tokens=12), strict=True):
        assert one.token_ids == other.token_ids
        assert torch.equal(one.logprobs, other.logprobs)


def test_the_adapter_is_enabled_again_after_the_block():
    model = tiny_model()
    before = tc.rollout(model, PROMPTS, max_new_tokens=8)
    with model.disable_adapter():
        tc.rollout(model, PROMPTS, max_new_tokens=8)
    after = tc.rollout(model, PROMPTS, max_new_tokens=8)
    assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(before, after, strict=True))


def test_a_plain_forward_uses_the_initial_state_by_the_written_formula():
    # y = W x + (alpha / R) A (S_0 (B x)) on one linear, computed by hand.
    model = tiny_model(window=8)
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    seen = {}
    handle = layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    with torch.no_grad():
        model(input_ids=IDS)
        S = model.base_model.initial_states()[1][0]
    handle.remove()
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.shape == (3, 20)  # B: [R, d_in]
    assert up.shape == (16, 5)  # A: [d_out, G]
    expected = seen["x"] @ layer.base_layer.weight.T + (6 / 3) * (seen["x"] @ down.T @ S.T @ up.T)
    assert_close(seen["y"], expected)


def test_nothing_stays_bound_after_a_forward():
    model = tiny_model(window=8)
    binding = model.base_model.binding
    model(input_ids=IDS)
    assert binding.states is None
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[10_000]]))
    assert binding.states is None
    tc.rollout(model, PROMPTS, max_new_tokens=8)
    assert binding.states is None
