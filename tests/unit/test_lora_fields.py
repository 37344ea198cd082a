"""Every field of `peft.LoraConfig` is kept, with a test that shows it, or refused with the reason."""

from __future__ import annotations

from dataclasses import fields

import peft
import pytest
import torch
from peft.tuners.lora import config as lora_config

import thoughtcache as tc
from support.compare import max_difference, padded
from support.models import adapt, tiny_base, tiny_model, trainable
from support.rollouts import PROMPTS
from thoughtcache.lora_fields import INITIALISATIONS, KEPT_FIELDS, REFUSED_FIELDS, check_lora_fields

GIVEN = {
    "lora_dropout": 0.1,
    "fan_in_fan_out": True,
    "bias": "all",
    "rank_pattern": {"q_proj": 2},
    "megatron_config": {"hidden_size": 8},
    "loftq_config": lora_config.LoftQConfig(),
    "eva_config": lora_config.EvaConfig(),
    "corda_config": lora_config.CordaConfig(),
    "lora_ga_config": lora_config.LoraGAConfig(),
    "use_dora": True,
    "velora_config": {"num_groups": 2},
    "alora_invocation_tokens": [7],
    "use_qalora": True,
    "monteclora_config": lora_config.MontecloraConfig(),
    "layer_replication": [(0, 1), (0, 2)],
    "runtime_config": lora_config.LoraRuntimeConfig(ephemeral_gpu_offload=True),
    "lora_bias": True,
    "target_parameters": ["mlp.up_proj.weight"],
    "use_bdlora": lora_config.BdLoraConfig(target_modules_bd_a=["q_proj"]),
    "arrow_config": lora_config.ArrowConfig(),
    "kasa_config": lora_config.KasaConfig(),
}
"""A value for every field that is refused."""
SHOWN = {
    "task_type": "test_other_task_types_are_refused",
    "peft_type": "test_what_peft_writes_down",
    "auto_mapping": "test_what_peft_writes_down",
    "peft_version": "test_what_peft_writes_down",
    "base_model_name_or_path": "test_what_peft_writes_down",
    "revision": "test_what_peft_writes_down",
    "inference_mode": "test_inference_mode_trains_nothing",
    "r": "test_a_kept_option_is_one_policy",
    "target_modules": "test_a_kept_option_is_one_policy",
    "exclude_modules": "test_a_kept_option_is_one_policy",
    "layers_to_transform": "test_a_kept_option_is_one_policy",
    "layers_pattern": "test_a_kept_option_is_one_policy",
    "lora_alpha": "test_the_adapter_is_scaled_by",
    "alpha_pattern": "test_the_adapter_is_scaled_by",
    "use_rslora": "test_the_adapter_is_scaled_by",
    "init_lora_weights": "test_initialisations_that_start_at_the_base",
    "modules_to_save": "test_a_kept_option_is_one_policy",
    "trainable_token_indices": "test_a_kept_option_is_one_policy",
    "ensure_weight_tying": "test_a_kept_option_is_one_policy",
    "megatron_core": "test_fields_without_meaning_change_nothing",
    "qalora_group_size": "test_fields_without_meaning_change_nothing",
}
"""The test of every field that is kept."""
SQUARE = {"r": 3, "num_global_tokens": 3}
UNEQUAL = {"r": 3, "num_global_tokens": 5}


def config(**options):
    return tc.ThoughtConfig(**{**UNEQUAL, "window": 5, **options})


def test_every_field_of_lora_config_is_kept_or_refused():
    """Fails when PEFT adds a field: put it into one of the two lists, with its test or its reason."""
    assert {field.name for field in fields(peft.LoraConfig)} == KEPT_FIELDS | set(REFUSED_FIELDS)
    assert not KEPT_FIELDS & set(REFUSED_FIELDS)
    assert set(GIVEN) == set(REFUSED_FIELDS)
    assert set(SHOWN) == KEPT_FIELDS
    assert set(SHOWN.values()) <= set(globals())


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_a_refused_field(name):
    with pytest.raises(ValueError, match=rf"^{name}=.* is not supported by ThoughtConfig: \w+"):
        config(**{name: GIVEN[name]})


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_a_refused_field_that_was_set_later_is_refused_before_the_model_is_touched(name):
    late, base = config(), tiny_base()
    setattr(late, name, GIVEN[name])
    with pytest.raises(ValueError, match=f"^{name}="):
        peft.get_peft_model(base, late)
    assert not [key for key, _ in base.named_modules() if "lora" in key]


def test_a_field_that_this_release_does_not_know_is_refused_as_soon_as_it_is_set(monkeypatch):
    monkeypatch.setattr("thoughtcache.lora_fields.KEPT_FIELDS", KEPT_FIELDS - {"use_rslora"})
    check_lora_fields(config())
    with pytest.raises(ValueError, match=r"use_rslora=True .* does not know the option"):
        config(use_rslora=True)


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_other_task_types_are_refused(task_type):
    with pytest.raises(ValueError, match="the state is made of generated tokens"):
        config(task_type=task_type)


@pytest.mark.parametrize(
    "name",
    ["pissa", "pissa_niter_4", "olora", "orthogonal", "corda", "eva", "loftq", "lora_ga", "mica", "unheard-of", None],
)
def test_other_initialisations_are_refused(name):
    unchecked = config()
    unchecked.init_lora_weights = name  # past the type checks of the tests, as a user without them would
    with pytest.raises(ValueError, match=r"init_lora_weights=.*choose one of \[True, False, 'gaussian'\]"):
        unchecked.__post_init__()


@pytest.mark.parametrize("sizes", [SQUARE, UNEQUAL], ids=["G = R", "G > R"])
@pytest.mark.parametrize("name", INITIALISATIONS)
def test_initialisations_that_start_at_the_base(name, sizes):
    """The base is never changed; `False` draws the second factor too, as PEFT says, whatever its size."""
    ids, base = torch.tensor([PROMPTS[0][:6]]), tiny_base()
    expected = base(ids).logits
    model = adapt(base, randomise=False, init_lora_weights=name, **sizes)
    up = [parameter for key, parameter in model.named_parameters() if "lora_B" in key]
    assert all(bool(parameter.count_nonzero()) == (name is False) for parameter in up)
    assert torch.equal(model(ids).logits, expected) == (name is not False)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, expected)


def test_gaussian_is_peft_s_own():
    model = adapt(tiny_base(), randomise=False, init_lora_weights="gaussian", r=16, num_global_tokens=3)
    drawn = torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name])
    assert abs(drawn.std().item() - 1 / 16) < 0.003


@pytest.mark.parametrize(
    ("options", "factor"),
    [({"lora_alpha": 12}, 2.0), ({"use_rslora": True}, 3**0.5), ({"alpha_pattern": {"q_proj": 12}}, 2.0)],
    ids=str,
)
def test_the_adapter_is_scaled_by(options, factor):
    """Against lora_alpha=6, r=3: as if `lora_B` had been multiplied, in the layers that are meant."""
    model, expected = tiny_model(**options), tiny_model()
    only = "q_proj" if "alpha_pattern" in options else ""
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if "lora_B" in name and only in name:
                parameter.mul_(factor)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    assert max_difference(tc.replay(expected, rollouts, anchored=False).logprobs, padded(rollouts)) < 1e-12


ALL_LAYERS = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 1]}
TIED = "a tied head"


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True:UserWarning")  # PEFT's advice; the first tied row
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")  # PEFT counts other modules
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"r": 1}),
        ("llama", {"target_modules": ["q_proj"]}),
        ("llama", {"target_modules": r".*layers\.\d+\.mlp\.(up|down)_proj"}),
        ("llama", {"target_modules": None}),
        ("llama", {"exclude_modules": ["o_proj"]}),
        ("llama", ALL_LAYERS),
        ("llama", {**ALL_LAYERS, "layers_pattern": "layers"}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"modules_to_save": ["embed_tokens", "norm"]}),
        ("llama", {"trainable_token_indices": [3, 4]}),
        ("llama", {"trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [4, 5]}}),
        (TIED, {"modules_to_save": ["lm_head"]}),
        (TIED, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        (TIED, {"trainable_token_indices": [3, 4]}),
        (TIED, {"trainable_token_indices": [3, 4], "ensure_weight_tying": True}),
    ],
    ids=str,
)
def test_a_kept_option_is_one_policy(family, options, tmp_path):
    """Rollout, replay and the naive reference agree, gradients of all that is trained included; it saves and loads."""

    def base():
        return tiny_base("qwen2", tie_word_embeddings=True) if family is TIED else tiny_base(family)

    model, bare = adapt(base(), **options), base()
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if "lora_" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    scored, naive = tc.replay(model, rollouts), tc.naive_logprobs(model, rollouts)
    assert max_difference(scored.logprobs, naive.logprobs) < 1e-12
    assert max_difference(scored.logprobs, padded(rollouts)) < 1e-12

    parameters = trainable(model)
    losses = [result.logprobs.square().sum() for result in (scored, naive)]
    gradients = [torch.autograd.grad(loss, list(parameters.values())) for loss in losses]
    for name, ours, expected in zip(parameters, *gradients, strict=True):
        assert expected.abs().max() > 0, name
        assert max_difference(ours, expected) <= 1e-9 * max(1.0, expected.abs().max().item()), name

    prompt = torch.tensor([PROMPTS[0]])
    with model.disable_adapter():
        assert torch.equal(model(prompt).logits, bare(prompt).logits)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base(), tmp_path)
    assert max_difference(tc.replay(again, rollouts).logprobs, scored.logprobs) < 1e-12


def test_inference_mode_trains_nothing():
    model = tiny_model(inference_mode=True)
    assert not trainable(model)
    assert tc.rollout(model, PROMPTS, max_new_tokens=7)[0].evictions


def test_what_peft_writes_down(tmp_path):
    base = tiny_base()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = somewhere = str(tmp_path / "base")
    model = adapt(base, base_model_name_or_path=somewhere, revision="r1")
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert isinstance(again, tc.ThoughtConfig)
    assert (again.peft_type, again.base_model_name_or_path, again.revision) == ("THOUGHT", somewhere, "r1")
    assert (again.peft_version, again.auto_mapping) == (peft.__version__, None)


def test_fields_without_meaning_change_nothing():
    ids = torch.tensor([PROMPTS[0][:6]])
    other = tiny_model(megatron_core="elsewhere", qalora_group_size=4)
    assert torch.equal(other(ids).logits, tiny_model()(ids).logits)
