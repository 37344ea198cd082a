"""What is not supported is refused where it is said, with the value, the reason and the remedy."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import thoughtcache as tc
from support.models import POSITIONS, adapt, tiny_base, tiny_model
from support.rollouts import PROMPTS
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.records import CacheSettings


def config(**arguments):
    return tc.ThoughtConfig(**{"r": 3, "num_global_tokens": 5, "window": 5, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout=0.1 is not supported.*dropout makes"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"layer_replication": [(0, 1), (0, 2)]}, "layer_replication"),
        ({"state_rule": "other"}, "state_rule='other' is not known; choose one of"),
        ({"state_norm": "l1"}, "state_norm='l1'"),
        ({"initial_state": "ones"}, "initial_state='ones'"),
        ({"eviction": "oldest"}, "eviction.*'oldest'"),
        ({"window": 0}, "window must be at least 1.*None for the full cache"),
        ({"window": -4}, "window must be at least 1"),
        ({"window": "foo"}, "window='foo' is not known"),
        ({"evict_fraction": 1.5}, r"evict_fraction must be in \(0, 1\], got 1.5"),
        ({"evict_fraction": 0.0}, "evict_fraction"),
        ({"num_global_tokens": 0}, "num_global_tokens must be at least 1"),
        ({"write_scale": 0.0}, "write_scale must be positive"),
        ({"initial_state": "identity"}, "set num_global_tokens=3"),
        ({"initial_state": "zero", "absorb": False}, "never changes the model"),
        ({"state_norm_at": "use"}, "state_norm_at='use' is not known"),
        (
            {"state_norm_at": "read", "state_norm": "none"},
            "state_norm_at='read' changes nothing with state_norm='none'",
        ),
        ({"state_norm_at": "read", "absorb": False}, "state_norm_at='read' changes nothing with absorb=False"),
        ({"encoder_start": "zero"}, "encoder_start='zero' is not known; choose one of"),
        ({"read_start": -0.5}, "read_start must be a number of at least 0, got -0.5"),
        ({"read_start": float("nan")}, "read_start must be a number"),
        (
            {"read_start": 0.5, "init_lora_weights": False},
            "read_start=0.5 changes nothing with init_lora_weights=False",
        ),
        *(
            (
                {name: value, "initial_state": "identity", "absorb": False, "num_global_tokens": 3},
                f"{name}={value!r} with .*plain LoRA; leave it out",
            )
            for name, value in (("encoder_start", "base"), ("read_start", 0.5))
        ),
        *(
            (
                {name: value, "memory": "attention", "num_global_tokens": 32},
                f"{name}={value!r} changes nothing under mem",
            )
            for name, value in (("state_norm_at", "read"), ("encoder_start", "base"), ("read_start", 0.5))
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_configuration(arguments, message):
    with pytest.raises(ValueError, match=message):
        config(**arguments)


@pytest.mark.parametrize("window", [1, 1024, "prompt", None])
def test_windows_that_are_fine(window):
    assert config(window=window).window == window


def test_defaults_are_those_of_the_paper():
    default = tc.ThoughtConfig()
    assert (default.r, default.num_global_tokens, default.evict_fraction) == (32, 32, 0.25)
    assert (default.state_rule, default.eviction, default.target_modules) == ("linear", "sliding", "all-linear")
    assert default.peft_type.value == "THOUGHT"


def test_model_type():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16))
    with pytest.raises(ValueError, match=r"model type 'gpt2' is not supported.*supported are"):
        peft.get_peft_model(gpt2, config())


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    ],
)
def test_layers_with_a_window_of_their_own(family, overrides):
    with pytest.raises(ValueError, match=r"which evict too.*sliding_window=None"):
        peft.get_peft_model(tiny_base(family, **overrides), config())


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_sliding_window_that_is_not_used_is_fine(family):
    adapt(tiny_base(family, use_sliding_window=False, sliding_window=8))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_targets_outside_of_the_decoder_layers(target):
    with pytest.raises(ValueError, match="not inside a decoder layer"):
        peft.get_peft_model(tiny_base(), config(target_modules=["q_proj", target]))


def test_a_window_that_is_no_integer():
    unchecked = config()
    unchecked.window = 2.5  # past the type checks of the tests, as a user without them would
    with pytest.raises(ValueError, match=r"window=2.5 is not known"):
        unchecked.__post_init__()


def test_layers_without_an_adapted_linear():
    with pytest.raises(ValueError, match=r"decoder layers \[1\] have no adapted linear"):
        adapt(tiny_base(), layers_to_transform=[0], target_modules=["q_proj", "down_proj"])


def test_a_model_without_a_thought_adapter():
    plain = peft.get_peft_model(tiny_base(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for model in (tiny_base(), plain):
        with pytest.raises(ValueError, match="carries no thought adapter; wrap it first"):
            tc.rollout(model, PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"top_k": -1}, "top_k must be at least 1 token, or 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"min_p": 2.0}, r"min_p must be in \[0, 1\]"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be positive"),
        ({"min_new_tokens": 3}, "min_new_tokens must be at most max_new_tokens=2, got 3"),
        ({"temperature": 0.0, "top_k": 3}, "top_k=3, top_p=1.0 and min_p=0.0 change nothing at temperature=0"),
        ({"seed": [1]}, f"1 seeds were given for {len(PROMPTS)} prompts"),
        ({"seed": 2**43}, r"seed must lie between -2\*\*43 and 2\*\*43, got 8796093022208"),
        ({"stop_strings": ["a"]}, "pass tokenizer= as well"),
        ({"window": 0}, "window must be at least 1"),
        ({"window": "foo"}, "window='foo' is not known"),
        ({"max_new_tokens": POSITIONS}, f"together more than the {POSITIONS} positions"),
        ({"prompt_ids": [[1] * (POSITIONS - 1)]}, f"longest prompt has {POSITIONS - 1} tokens"),
        ({"prompt_ids": []}, "no prompts were given"),
        ({"prompt_ids": [[1], []]}, "prompt 1 is empty"),
    ],
)
def test_rollout_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tc.rollout(tiny_model(), **{"prompt_ids": PROMPTS, "max_new_tokens": 2, **arguments})


def test_the_last_position_can_be_used():
    rollout = tc.rollout(tiny_model(), [[1] * (POSITIONS - 3)], max_new_tokens=3)[0]
    assert len(rollout.token_ids) == 3


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")  # the name that users know
def test_gradient_checkpointing():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=2)
    model.base_model.model.gradient_checkpointing_enable()
    for run in (
        lambda: tc.rollout(model, PROMPTS, max_new_tokens=2),
        lambda: tc.replay(model, rollouts),
        lambda: tc.naive_logprobs(model, rollouts),
    ):
        with pytest.raises(ValueError, match=r"gradient_checkpointing_disable\(\)"):
            run()
    model.base_model.model.gradient_checkpointing_disable()
    tc.replay(model, rollouts)


def test_attention_dropout():
    with pytest.raises(ValueError, match="attention_dropout"):
        tc.rollout(tiny_model(base={"attention_dropout": 0.1}), PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize(
    "changed",
    [
        {"window": 4},
        {"num_evicted": 2},
        {"temperature": 0.5},
        {"eviction": "random"},
        {"eviction_options": (("sinks", 3),)},
    ],
    ids=str,
)
def test_mixed_settings_in_a_replay(changed):
    model = tiny_model()
    first, second = tc.rollout(model, PROMPTS[:2], max_new_tokens=3)
    second = replace(second, settings=replace(second.settings, **changed))
    with pytest.raises(ValueError, match=f"rollout 1 was sampled with {next(iter(changed))}.*separate calls"):
        tc.replay(model, [first, second])


def test_settings_that_do_not_change_a_replay_may_differ():
    model = tiny_model()
    first, second = tc.rollout(model, PROMPTS[:2], max_new_tokens=3)
    second = replace(second, settings=replace(second.settings, seed=9, max_new_tokens=50))
    assert tc.replay(model, [first, second]).mask.all()


@pytest.mark.parametrize("gradient", ["full", 0, -1, None, 1.5])
def test_gradient_modes(gradient):
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=2)
    with pytest.raises(Exception, match="gradient"):
        tc.replay(model, rollouts, gradient=gradient)


def test_nothing_to_replay():
    model = tiny_model()
    with pytest.raises(ValueError, match="no rollouts were given"):
        tc.replay(model, [])
    rollout = tc.rollout(model, PROMPTS[:1], max_new_tokens=2)[0]
    with pytest.raises(ValueError, match="rollout 0 has no thought tokens"):
        tc.replay(model, [replace(rollout, token_ids=[], logprobs=torch.zeros(0))])


def test_recorded_states_of_another_shape():
    rollouts = tc.rollout(tiny_model(r=4), PROMPTS, max_new_tokens=8)
    with pytest.raises(ValueError, match="recorded states of shape"):
        tc.replay(tiny_model(), rollouts)


def test_several_thoughts_at_once_at_a_full_window():
    tuner = tiny_model().base_model
    cache = tuner.new_cache(CacheSettings(window=5, num_evicted=1, eviction="sliding"), max_new_tokens=9)
    with torch.no_grad():
        tuner.model(input_ids=torch.tensor([[1, 2, 3]]), **cache_keyword(tuner.model, cache))
        with pytest.raises(ValueError, match="6 thought tokens arrived at once"):
            tuner.model(input_ids=torch.tensor([[1] * 6]), **cache_keyword(tuner.model, cache))


def test_more_tokens_than_a_full_cache_was_made_for():
    tuner = tiny_model().base_model
    cache = tuner.new_cache(CacheSettings(window=None, num_evicted=None, eviction="sliding"), max_new_tokens=2)
    with torch.no_grad():
        tuner.model(input_ids=torch.tensor([[1, 2, 3]]), **cache_keyword(tuner.model, cache))
        with pytest.raises(ValueError, match="raise max_new_tokens"):
            tuner.model(input_ids=torch.tensor([[1] * 3]), **cache_keyword(tuner.model, cache))


def test_unknown_eviction_policy_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"eviction='oldest' is not known; choose one of .*'random'.*'sliding'"):
        tiny_model().base_model.new_cache(CacheSettings(window=5, num_evicted=1, eviction="oldest"), max_new_tokens=2)
