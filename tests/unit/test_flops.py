"""The closed form of the arithmetic against PyTorch's own counter, on steps and on whole rollouts."""

from __future__ import annotations

import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from thoughtcache import ThoughtConfig, rollout
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.planning.flops import (
    absorption_flops,
    flops_per_token,
    mean_context,
    rollout_flops_per_token,
)
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings

PROMPT, TOKENS, WINDOW = 7, 22, 8
EXACT = 1e-9


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        eos_token_id=None,
        # The counter has no formula for the fused CPU kernel; the eager one is two matmuls.
        attn_implementation="eager",
    )


def adapted(**options: object) -> peft.PeftModel:
    config = ThoughtConfig(**({"r": 6, "num_global_tokens": 5, "window": WINDOW, "lora_alpha": 6} | options))
    return peft.get_peft_model(LlamaForCausalLM(tiny_config()), config)


def counted(model: torch.nn.Module, num_tokens: int, window: int | str | None) -> int:
    """Operations of a rollout, prefill included, by PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        rollout(model, [list(range(1, PROMPT + 1))], max_new_tokens=num_tokens, ignore_eos=True, window=window)
    return operations(counter)


def operations(counter: FlopCounterMode) -> int:
    """What was counted, without the angles of the positions: a matmul of one column in older transformers only."""
    counts = counter.get_flop_counts()
    angles = sum(sum(by_operator.values()) for name, by_operator in counts.items() if name.endswith(".rotary_emb"))
    return counter.get_total_flops() - angles


def decode_steps_counted(model: torch.nn.Module, window: int | str | None) -> float:
    """Mean over the decode steps: a rollout of one token is the prefill and what happens once per rollout."""
    return (counted(model, TOKENS, window) - counted(model, 1, window)) / (TOKENS - 1)


def test_by_hand():
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
    )
    flops = flops_per_token(
        config,
        context=7.0,
        rank=2,
        num_global_tokens=3,
        target_modules=["q_proj", "down_proj"],
        num_evicted=4,
        evictions_per_token=0.25,
    )
    # Per layer: q 4x12, k and v 4x6 each, o 12x4, three MLP matrices 4x6: 48 + 48 + 48 + 72 = 216 weights.
    assert flops.linears == 3 * 2 * 216
    # Per layer: scores and values, 2 x 12 x 7 each.
    assert flops.attention == 3 * (2 * 12 * 7 + 2 * 12 * 7)
    # q: down 2x4, up 12x3 = 44; down_proj: down 2x6, up 4x3 = 24.
    assert flops.adapter == 3 * 2 * (44 + 24)
    assert flops.state_read == 3 * 2 * (2 * 2 * 3)
    # Keys and values 4x6x2 each, K^T V 4x2x2, Q times it 3x2x2: 48 + 48 + 16 + 12 = 124 multiply-adds per event.
    assert flops.absorption == 3 * 2 * 124 * 0.25
    assert flops.head == 2 * 4 * 10
    assert flops.total == 1296 + 1008 + 408 + 72 + 186 + 80


@pytest.mark.parametrize("context", [1, 9, 63])
def test_a_decode_step_agrees_with_the_counter(context):
    model = adapted()
    tuner = find_tuner(model)
    cache = tuner.new_cache(CacheSettings(window=None, num_evicted=None, eviction="sliding"), max_new_tokens=1)
    with torch.no_grad():
        if context > 1:
            tuner.backbone(
                input_ids=torch.ones(1, context - 1, dtype=torch.long), **cache_keyword(tuner.backbone, cache)
            )
        with FlopCounterMode(display=False) as counter:
            hidden = tuner.backbone(
                input_ids=torch.ones(1, 1, dtype=torch.long), **cache_keyword(tuner.backbone, cache)
            )
            tuner.model.get_output_embeddings()(hidden.last_hidden_state)
    expected = flops_per_token(model, context=float(context), rank=6, num_global_tokens=5).total
    print(f"context {context}: counter {operations(counter)}, closed form {expected:.0f}")
    assert expected == pytest.approx(operations(counter), rel=EXACT)


# The counter has no formula for the gate (a matrix times a vector) nor for the triangular solve of the delta rule;
# the closed form counts both. Everything else is the same integer arithmetic.
UNCOUNTED = {"gated": 0.005, "delta": 0.005}


@pytest.mark.parametrize(
    ("rule", "window"),
    [
        ("linear", None),
        ("linear", "prompt"),
        ("linear", WINDOW),
        ("decay", WINDOW),
        ("softmax", WINDOW),
        ("gated", WINDOW),
        ("delta", WINDOW),
    ],
)
def test_a_rollout_agrees_with_the_counter(rule, window):
    model = adapted(state_rule=rule)
    measured = decode_steps_counted(model, window)
    expected = rollout_flops_per_token(
        model, find_tuner(model).thought_config, prompt_tokens=PROMPT, num_tokens=TOKENS, window=window
    )
    print(f"{rule} {window}: counter {measured:.1f}, closed form {expected.total:.1f}")
    assert expected.total == pytest.approx(measured, rel=UNCOUNTED.get(rule, EXACT))
    assert (expected.absorption > 0) == (window is not None)


# Not counted are the multiplication of the state by its decay, and the triangular solve.
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, EXACT),
        ({"memory_read": "added", "memory_keys": "rotated"}, EXACT),
        ({"memory_read": "added", "memory_feature_map": "unit"}, EXACT),
        ({"memory_feature_map": "hedgehog", "memory_write": "decay"}, 0.005),
        ({"memory_write": "delta"}, 0.005),
        ({"memory_read": "joint"}, EXACT),
        ({"memory": "both", "num_global_tokens": 5}, EXACT),
    ],
)
def test_a_memory_in_attention_agrees_with_the_counter(options, tolerance):
    model = adapted(**{"memory": "attention", "memory_features": 8, "num_global_tokens": 32, **options})
    thought = find_tuner(model).thought_config
    measured = decode_steps_counted(model, WINDOW)
    flops = rollout_flops_per_token(model, thought, prompt_tokens=PROMPT, num_tokens=TOKENS)
    print(f"{options}: counter {measured:.1f}, closed form {flops.total:.1f}")
    assert flops.total == pytest.approx(measured, rel=tolerance)
    assert min(flops.memory_read, flops.absorption) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"initial_state": "identity", "absorb": False, "num_global_tokens": 6},
        {"absorb": False},
        {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]},
        {"target_modules": r".*\.(k|v)_proj"},
    ],
    ids=["plain LoRA", "global only", "names", "expression"],
)
def test_controls_and_targets_agree_with_the_counter(options):
    model = adapted(**options)
    thought = ThoughtConfig(**({"r": 6, "num_global_tokens": 5, "window": WINDOW, "lora_alpha": 6} | options))
    measured = decode_steps_counted(model, WINDOW)
    flops = rollout_flops_per_token(tiny_config(), thought, prompt_tokens=PROMPT, num_tokens=TOKENS)
    assert flops.total == pytest.approx(measured, rel=EXACT)
    assert (flops.state_read == 0) == thought.is_plain_lora
    assert (flops.absorption == 0) == (not thought.absorb)


def test_the_base_model_agrees_with_the_counter():
    model = adapted()
    with model.disable_adapter():
        measured = decode_steps_counted(model, WINDOW)
    flops = rollout_flops_per_token(model, None, prompt_tokens=PROMPT, num_tokens=TOKENS, window=WINDOW)
    assert flops.total == pytest.approx(measured, rel=EXACT)
    assert flops.adapter == flops.state_read == flops.absorption == 0


def test_mean_context_by_hand():
    # Window 4, one leaves: inputs 0..5 see 1, 2, 3, 4, 4, 4 thoughts after 3 of the prompt.
    assert mean_context(3, 7, 4, 1) == 3 + 18 / 6
    # Window 4, two leave: 1, 2, 3, 4, 3, 4.
    assert mean_context(3, 7, 4, 2) == 3 + 17 / 6
    # Full cache: 1 to 6.
    assert mean_context(3, 7, None, None) == 3 + 21 / 6
    assert mean_context(3, 2, 1, 1) == 4.0


def test_the_window_bounds_the_attention_and_the_full_cache_does_not():
    def attention(num_tokens: int, window: int | None) -> float:
        return rollout_flops_per_token(
            tiny_config(), None, prompt_tokens=8, num_tokens=num_tokens, window=window
        ).attention

    assert attention(8000, 16) <= 1.1 * attention(800, 16)
    assert attention(8000, None) > 9 * attention(800, None)


def test_refusals():
    config = tiny_config()
    with pytest.raises(ValueError, match="model type 'gpt2'"):
        flops_per_token(GPT2Config(), context=1.0)
    with pytest.raises(ValueError, match="context=-1"):
        flops_per_token(config, context=-1.0)
    with pytest.raises(ValueError, match="state_rule='other'"):
        absorption_flops(4, 1, 2, 2, "other")
    with pytest.raises(ValueError, match="needs an adapter"):
        rollout_flops_per_token(config, None, prompt_tokens=3, num_tokens=5)
    with pytest.raises(ValueError, match="window='half'"):
        rollout_flops_per_token(config, None, prompt_tokens=3, num_tokens=5, window="half")
    with pytest.raises(ValueError, match="num_tokens at least 2"):
        mean_context(3, 1, None, None)
