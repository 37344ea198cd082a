"""`model.generate` of transformers takes the same path through cache and state as our own sampler."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

import thoughtcache as tc
from support.models import FAMILIES, tiny_model
from support.rollouts import PROMPTS, stop_token

NEW_TOKENS = 14


def left_padded(prompts):
    """input_ids and attention_mask as a tokenizer with left padding makes them."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, prompts=PROMPTS, **arguments):
    inputs = left_padded(prompts)
    out = model.generate(**inputs, do_sample=False, pad_token_id=0, **arguments)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def greedy(model, prompts=PROMPTS, new_tokens=NEW_TOKENS, **settings):
    return tc.rollout(model, prompts, max_new_tokens=new_tokens, temperature=0.0, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_is_the_greedy_rollout(family):
    model = tiny_model(family)
    rollouts = greedy(model)
    assert len(rollouts[0].evictions) == 8
    assert generate(model, max_new_tokens=NEW_TOKENS) == [rollout.token_ids for rollout in rollouts]


@pytest.mark.parametrize(
    "config",
    [
        {"window": None},
        {"window": "prompt"},
        {"window": 1},
        {"window": 8, "evict_fraction": 0.5},
        {"eviction": "random"},
        {"state_rule": "delta"},
        {"absorb": False},
        {"state_norm": "orthogonal", "state_norm_at": "read"},
        {"initial_state": "identity", "absorb": False, "r": 5},
    ],
    ids=str,
)
def test_settings(config):
    model = tiny_model(**config)
    assert generate(model, max_new_tokens=NEW_TOKENS) == [rollout.token_ids for rollout in greedy(model)]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.6},
        {"min_new_tokens": 6},
        {"repetition_penalty": 1.5, "min_new_tokens": 6},
    ],
    ids=str,
)
def test_options_mean_the_same(options):
    """Prompts one by one: with padding, transformers penalises the padding token as well."""
    model, stops = tiny_model(), list(range(3, 15))
    shared = {"max_new_tokens": NEW_TOKENS, **options}
    found = tc.rollout(model, PROMPTS, temperature=0.0, stop_ids=stops, **shared)
    plain = tc.rollout(model, PROMPTS, temperature=0.0, stop_ids=stops, max_new_tokens=NEW_TOKENS)
    assert [r.token_ids for r in found] != [r.token_ids for r in plain]
    for prompt, rollout in zip(PROMPTS, found, strict=True):
        assert generate(model, [prompt], eos_token_id=stops, **shared) == [rollout.token_ids]


def test_the_window_changes_what_is_generated():
    model = tiny_model()
    bounded = generate(model, max_new_tokens=NEW_TOKENS)
    model.peft_config["default"].window = None
    assert generate(model, max_new_tokens=NEW_TOKENS) != bounded


def test_disabled_adapter_generates_with_the_base_model_and_its_full_cache():
    model = tiny_model()
    with model.disable_adapter():
        base = generate(model, max_new_tokens=NEW_TOKENS)
        assert base == [rollout.token_ids for rollout in greedy(model, window=None)]
        assert base != [rollout.token_ids for rollout in greedy(model)]  # the window would change it


def test_rows_that_end_early():
    model = tiny_model()
    free = greedy(model)
    stop = stop_token(free, not_before=1)
    model.generation_config.eos_token_id = stop
    model.base_model.model.generation_config.eos_token_id = stop
    stopped = greedy(model)
    assert {rollout.finish_reason for rollout in stopped} == {"stop", "length"}
    for tokens, rollout in zip(generate(model, max_new_tokens=NEW_TOKENS), stopped, strict=True):
        assert tokens[: len(rollout.token_ids)] == rollout.token_ids
        assert set(tokens[len(rollout.token_ids) :]) <= {0}


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_length": max(len(prompt) for prompt in PROMPTS) + NEW_TOKENS},
        {"generation_config": GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)},
    ],
    ids=["max_length", "generation_config"],
)
def test_other_ways_to_say_how_long(arguments):
    model = tiny_model()
    assert generate(model, **arguments) == [rollout.token_ids for rollout in greedy(model)]


def test_several_samples_per_prompt():
    model = tiny_model()
    inputs = left_padded(PROMPTS[:2])
    out = model.generate(**inputs, do_sample=True, num_return_sequences=3, max_new_tokens=9, pad_token_id=0)
    assert out.shape == (6, inputs["input_ids"].shape[1] + 9)


def test_input_ids_alone_and_by_position():
    model = tiny_model()
    ids = torch.tensor([PROMPTS[0]])
    expected = greedy(model, PROMPTS[:1])[0].token_ids
    for out in (
        model.generate(input_ids=ids, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0),
        model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0),
    ):
        assert out[0, len(PROMPTS[0]) :].tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 2}, "num_beams=1"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams=1"),
        ({"past_key_values": object()}, "past_key_values"),
        ({"cache": object()}, "cache"),
        ({"assistant_model": object()}, "assistant_model"),
        ({"prefill_chunk_size": 2}, "prefill_chunk_size"),
        ({"cache_implementation": "static"}, "cache_implementation"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_that_would_break_the_policy_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(), max_new_tokens=4, **arguments)


def test_a_prompt_is_needed():
    with pytest.raises(ValueError, match="input_ids"):
        tiny_model().generate(max_new_tokens=4)
