"""Every public method of PEFT's models works on a thought adapter, with a test that shows it, or is refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import peft
import pytest
import torch
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import nn

import thoughtcache as tc
from support.compare import max_difference, padded
from support.models import adapt, randomise_adapter, tiny_base, tiny_model, trainable
from support.rollouts import PROMPTS

IDS = torch.tensor([PROMPTS[0][:6], PROMPTS[0][:0:-1]])
"""As many tokens as one pass without a cache may have under the tiny adapter's window of 5."""
LIFE_CYCLE = "test_peft_life_cycle.py"
OF_THE_TUNER = {
    "active_adapters": "test_layer_and_model_status",
    "add_weighted_adapter": "test_adapters_cannot_be_combined",
    "delete_adapter": "test_without_an_adapter_the_base_is_as_it_was",
    "disable_adapter_layers": "test_switching_the_adapter_off_and_on",
    "enable_adapter_layers": "test_switching_the_adapter_off_and_on",
    "get_model_config": "not about adapters: the base's configuration as a dict",
    "inject_adapter": "test_a_refused_adapter_leaves_the_model_as_it_was",
    "merge_adapter": "test_merging_is_refused_before_anything_changes",
    "merge_and_unload": "test_merging_is_refused_before_anything_changes",
    "prefix": "a constant",
    "set_adapter": f"{LIFE_CYCLE}::test_two_adapters",
    "set_requires_grad": "test_gradients_of_one_adapter_alone",
    "subtract_mutated_init": "test_there_is_no_other_initialisation_to_convert_from",
    "supports_lora_conversion": "test_an_adapter_cannot_become_plain_lora",
    "target_module_mapping": "a constant",
    "tuner_layer_cls": "a constant",
    "unload": "test_without_an_adapter_the_base_is_as_it_was",
    "unmerge_adapter": "test_merging_is_refused_before_anything_changes",
    "uses_shared_state": "a constant of PEFT's: False, every adapter has layers of its own",
}
OF_THE_MODEL = {
    "active_adapters": "test_layer_and_model_status",
    "active_peft_config": f"{LIFE_CYCLE}::test_reload_under_any_name",
    "add_adapter": f"{LIFE_CYCLE}::test_two_adapters",
    "base_model_torch_dtype": "not about adapters: the base's dtype",
    "create_or_update_model_card": "test_model_card.py::test_a_saved_adapter_says_what_it_is_and_how_to_load_it",
    "delete_adapter": "test_without_an_adapter_the_base_is_as_it_was",
    "disable_adapter": "test_switching_the_adapter_off_and_on",
    "from_pretrained": f"{LIFE_CYCLE}::test_reload_under_any_name",
    "generate": "test_generate.py::test_",
    "get_base_model": "test_without_an_adapter_the_base_is_as_it_was",
    "get_layer_status": "test_layer_and_model_status",
    "get_model_status": "test_layer_and_model_status",
    "get_nb_trainable_parameters": "test_layer_and_model_status",
    "get_prompt": "of prompt tuning: PEFT has no prompt encoder to ask",
    "get_prompt_embedding_to_save": "of prompt tuning: PEFT has no prompt encoder to ask",
    "has_active_enabled_adapter": "test_switching_the_adapter_off_and_on",
    "load_adapter": "test_a_second_adapter_is_loaded_beside_the_first",
    "modules_to_save": "test_lora_fields.py::test_a_kept_option_is_one_policy",
    "peft_config": f"{LIFE_CYCLE}::test_reload_under_any_name",
    "prepare_inputs_for_generation": "test_generate.py::test_",
    "prepare_model_for_gradient_checkpointing": "test_gradient_checkpointing.py::test_the_same_checkpoints_as",
    "print_trainable_parameters": "test_layer_and_model_status",
    "push_to_hub": "save_pretrained, and then the network",
    "save_pretrained": f"{LIFE_CYCLE}::test_saved_files",
    "set_adapter": f"{LIFE_CYCLE}::test_two_adapters",
    "set_requires_grad": "test_gradients_of_one_adapter_alone",
    "supports_lora_conversion": "test_an_adapter_cannot_become_plain_lora",
}
"""Name -> the test that shows that it works or is refused, or why there is nothing to show."""


def public(of):
    return {name for name in set(dir(of)) - set(dir(nn.Module)) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("of", "known"),
    [(LoraModel, OF_THE_TUNER), (peft.PeftModelForCausalLM, OF_THE_MODEL)],
    ids=["the tuner", "the model"],
)
def test_every_public_method_is_known(of, known):
    """Fails when PEFT adds a method: show that it works or is refused, and enter it above."""
    assert public(of) == set(known)
    for entry in known.values():
        file, _, name = entry.rpartition("::")
        if name.startswith("test_"):
            paths = Path(__file__).parents[1].rglob(file or Path(__file__).name)
            assert any(f"def {name}" in path.read_text() for path in paths), entry


def hooks(model):
    """Everything that runs around a forward pass of some module, and forwards of single instances."""
    found = []
    for name, module in model.named_modules():
        found += [(name, hook) for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]
        found += [(name, "forward")] if "forward" in vars(module) else []
    return found


def take_off(model, how):
    base = model.get_base_model()
    if how == "unload":
        assert model.unload() is base
    else:
        model.delete_adapter("default")
        assert torch.equal(model.base_model(IDS).logits, base(IDS).logits)
    return base


@pytest.mark.parametrize(
    "option", [{}, {"modules_to_save": ["norm", "lm_head"]}, {"trainable_token_indices": [3]}], ids=str
)
@pytest.mark.parametrize("how", ["unload", "delete the last adapter"])
def test_without_an_adapter_the_base_is_as_it_was(how, option):
    pristine = tiny_base()
    model = tiny_model(**option)
    tc.rollout(model, PROMPTS, max_new_tokens=7)
    base = take_off(model, how)
    assert [(name, type(module)) for name, module in base.named_modules()] == [
        (name, type(module)) for name, module in pristine.named_modules()
    ]
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in pristine.state_dict().items())
    assert hooks(base) == hooks(pristine) == []
    assert "peft_config" not in vars(base)
    assert torch.equal(base(IDS).logits, pristine(IDS).logits)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(base.generate(IDS, **options), pristine.generate(IDS, **options))
    with pytest.raises(ValueError, match=r"exactly one thought adapter may be active, got \[\].*wrap the base again"):
        tc.rollout(model, PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize("positions", ["absolute", "rolling"])
@pytest.mark.parametrize("how", ["unload", "delete the last adapter"])
def test_a_base_that_was_wrapped_before_is_wrapped_as_a_new_one(how, positions):
    again = adapt(take_off(tiny_model(positions=positions), how), positions=positions, state_rule="delta")
    fresh = tiny_model(positions=positions, state_rule="delta")
    assert [name for name, _ in hooks(again)] == [name for name, _ in hooks(fresh)]
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(IDS, **options), fresh.generate(IDS, **options))
    rollouts = tc.rollout(again, PROMPTS, max_new_tokens=12)
    assert max_difference(tc.replay(fresh, rollouts).logprobs, padded(rollouts)) < 1e-12


@pytest.mark.parametrize("how", ["unload", "delete the last adapter"])
def test_plain_lora_after_a_thought_adapter(how):
    config = peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    found = []
    for base in (take_off(tiny_model(), how), tiny_base()):
        torch.manual_seed(3)
        found.append(peft.get_peft_model(base, config).eval()(IDS).logits)
    assert torch.equal(*found)


def test_a_new_adapter_after_the_last_one_was_deleted():
    model = tiny_model()
    model.delete_adapter("default")
    torch.manual_seed(1)
    model.add_adapter("new", tc.ThoughtConfig(r=3, lora_alpha=6, num_global_tokens=5, window=5, write_scale=0.5))
    model.set_adapter("new")
    randomise_adapter(model)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    assert rollouts[0].evictions
    assert max_difference(tc.replay(tiny_model(), rollouts).logprobs, padded(rollouts)) < 1e-12


def test_a_copy_is_unloaded_alone():
    model = tiny_model()
    twin = copy.deepcopy(model)
    base = twin.unload()
    assert hooks(base) == []
    assert torch.equal(base(IDS).logits, tiny_base()(IDS).logits)
    assert len(hooks(model)) == 4
    assert torch.equal(model(IDS).logits, tiny_model()(IDS).logits)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time:UserWarning")
@pytest.mark.parametrize("wrap", [lambda m: adapt(m.get_base_model()), lambda m: adapt(m)], ids=["base", "model"])
def test_a_second_wrapping_is_refused(wrap):
    model = tiny_model()
    expected = model(IDS).logits
    with pytest.raises(ValueError, match=r"carries adapter layers already; take its base back with model.unload\(\)"):
        wrap(model)
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize(
    "options", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": r".*layers\.0\.mlp\.up_proj"}], ids=str
)
def test_a_refused_adapter_leaves_the_model_as_it_was(options):
    settings = {"r": 3, "num_global_tokens": 5, **options}
    base = tiny_base()
    with pytest.raises(ValueError, match="decoder layer"):
        peft.get_peft_model(base, tc.ThoughtConfig(**settings))
    assert [type(module) for module in base.modules()] == [type(module) for module in tiny_base().modules()]
    assert all(parameter.requires_grad for parameter in base.parameters())
    model = adapt(base)

    expected, names = model(IDS).logits, trainable(model).keys()
    with pytest.raises(ValueError, match="decoder layer"):
        model.add_adapter("second", tc.ThoughtConfig(**settings))
    assert set(model.peft_config) == {"default"}
    assert not [name for name in model.state_dict() if "second" in name]
    assert trainable(model).keys() == names
    assert torch.equal(model(IDS).logits, expected)


def test_a_model_without_a_configuration():
    with pytest.raises(ValueError, match="no transformers configuration"):
        peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), tc.ThoughtConfig(target_modules=["0"]))


@pytest.mark.parametrize("kind", ["linear", "svd", "cat", "ties", "dare_linear", "magnitude_prune"])
def test_adapters_cannot_be_combined(kind):
    model = tiny_model()
    model.add_adapter("second", tc.ThoughtConfig(r=3, num_global_tokens=5))
    with pytest.raises(ValueError, match=r"cannot be combined by their weights.*set_adapter"):
        model.add_weighted_adapter(["default", "second"], [1.0, 0.0], "both", combination_type=kind, density=1.0)
    assert set(model.peft_config) == {"default", "second"}


@pytest.mark.parametrize("argument", [{"adapter_names": ["default", "second"]}, {"alora_offsets": [1, 2]}], ids=str)
def test_arguments_for_single_rows_are_refused(argument):
    model = tiny_model()
    model.add_adapter("second", tc.ThoughtConfig(r=3, num_global_tokens=5))
    for run in (model, lambda **kwargs: model.generate(max_new_tokens=2, **kwargs)):
        with pytest.raises(ValueError, match=f"{next(iter(argument))} is not supported.*one batch per adapter"):
            run(input_ids=IDS, **argument)


@pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning")
@pytest.mark.parametrize("how", ["merge_adapter", "merge_and_unload"])
def test_merging_is_refused_before_anything_changes(how):
    model = tiny_model(trainable_token_indices=[3], modules_to_save=["norm"])
    before, layers = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="cannot be merged into the weights"):
        getattr(model, how)()
    model.unmerge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == layers


def test_there_is_no_other_initialisation_to_convert_from(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="leave out path_initial_model_for_weight_conversion"):
        model.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    with pytest.raises(ValueError, match="no other initialisation"):
        model.subtract_mutated_init({}, "default")


def test_an_adapter_cannot_become_plain_lora():
    model = tiny_model()
    assert not model.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):  # PEFT's own words
        peft.convert_to_lora(model, rank=2)


def test_switching_the_adapter_off_and_on():
    model, bare = tiny_model(), tiny_base()(IDS).logits
    expected = model(IDS).logits
    assert model.has_active_enabled_adapter
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, bare)
    assert torch.equal(model(IDS).logits, expected)
    model.base_model.disable_adapter_layers()
    assert torch.equal(model(IDS).logits, bare)
    model.base_model.enable_adapter_layers()
    assert torch.equal(model(IDS).logits, expected)


def test_layer_and_model_status(capsys):
    model = tiny_model(state_rule="gated")
    total = sum(parameter.numel() for parameter in model.parameters())
    count = sum(parameter.numel() for parameter in trainable(model).values())
    assert model.get_nb_trainable_parameters() == (count, total)
    model.print_trainable_parameters()
    assert f"trainable params: {count:,}" in capsys.readouterr().out
    assert model.active_adapters == model.base_model.active_adapters == ["default"]
    status = model.get_model_status()
    assert (status.peft_types, status.trainable_params, status.num_adapter_layers) == (
        {"default": "THOUGHT"},
        count,
        14,
    )
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    layers = model.get_layer_status()
    assert all(layer.requires_grad == {"default": True} for layer in layers)
    assert sum("lora_thought_encoder" in str(layer) for layer in layers) in (0, 2)


def test_gradients_of_one_adapter_alone():
    model = tiny_model()
    names = trainable(model).keys()
    model.add_adapter("second", tc.ThoughtConfig(r=3, num_global_tokens=5))
    model.set_requires_grad("default", requires_grad=False)
    assert not trainable(model)
    model.set_requires_grad("default")
    assert trainable(model).keys() == names


def test_a_second_adapter_is_loaded_beside_the_first(tmp_path):
    other = tiny_model(seed=5, state_rule="delta", window=4)
    other.save_pretrained(tmp_path)
    model = tiny_model()
    expected = model(IDS).logits
    model.load_adapter(str(tmp_path), "second")
    assert torch.equal(model(IDS).logits, expected)
    model.set_adapter("second")
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    assert max_difference(tc.replay(other, rollouts).logprobs, padded(rollouts)) < 1e-12


@pytest.mark.parametrize("rank", [8, None])
def test_hot_swapping_is_refused(rank, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but THOUGHT was passed"):  # PEFT's own words
        hotswap_adapter(model, str(tmp_path), "default")
    prepare_model_for_compiled_hotswap(model, target_rank=rank)
    for run in (lambda: model(IDS), lambda: tc.rollout(model, PROMPTS, max_new_tokens=2)):
        with pytest.raises(
            ValueError, match=r"hot-swapping is not supported.*switch between adapters with set_adapter"
        ):
            run()


def test_a_rescaled_adapter_is_one_policy():
    model = tiny_model()
    with rescale_adapter_scale(model, 0.5):
        rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
        assert max_difference(tc.replay(model, rollouts).logprobs, padded(rollouts)) < 1e-12
    assert max_difference(tc.replay(model, rollouts).logprobs, padded(rollouts)) > 1e-3


def test_mixed_methods_are_refused_by_peft():
    with pytest.raises(ValueError, match=re.escape("THOUGHT")):
        peft.get_peft_model(tiny_base(), tc.ThoughtConfig(r=3, num_global_tokens=5), mixed=True)
