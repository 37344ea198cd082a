"""Gradient checkpointing of transformers on an adapted model: the same gradients, or a refusal in the forward pass."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, CheckpointWrapper

import thoughtcache as tc
from support.compare import max_difference
from support.models import FAMILIES, tiny_base, tiny_model, trainable
from support.rollouts import PROMPTS

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning"),  # the name that users know
    pytest.mark.filterwarnings("ignore:`use_cache=True` is incompatible:UserWarning"),
]


def gradients(model):
    """Of a loss of a plain forward pass, by the name of the parameter."""
    model.zero_grad()
    model(input_ids=IDS).logits.square().mean().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in trainable(model).items()}


def checkpointed(model, **options):
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(options)
    return model


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(("family", "at"), [*((family, "write") for family in FAMILIES), ("llama", "read")])
def test_every_gradient_is_that_without_checkpoints(family, at, use_reentrant):
    model = tiny_model(family, state_norm_at=at)
    expected = gradients(model)
    got = gradients(checkpointed(model, use_reentrant=use_reentrant))
    reached = [name for name, gradient in expected.items() if gradient is not None]
    assert any("thought_encoder" in name and expected[name].any() for name in reached)
    assert [name for name, gradient in got.items() if gradient is not None] == reached
    for name in reached:
        assert max_difference(got[name], expected[name]) < 1e-13, name


def test_checkpoints_on_every_second_layer_and_switched_off_again():
    model = tiny_model()
    expected = gradients(model)
    checkpointed(model, use_reentrant=False)
    model.base_model.backbone.layers[1].gradient_checkpointing = False
    assert (
        max(max_difference(value, expected[name]) for name, value in gradients(model).items() if value is not None)
        < 1e-13
    )
    model.gradient_checkpointing_disable()
    assert (
        max(max_difference(value, expected[name]) for name, value in gradients(model).items() if value is not None) == 0
    )


def test_two_forward_passes_before_one_backward_pass_keep_their_states_apart():
    """The states are those of the pass that is run again, not of the last pass: the adapter changes in between."""
    model = checkpointed(tiny_model(), use_reentrant=False)
    model.add_adapter("second", tc.ThoughtConfig(r=3, num_global_tokens=5, window=5, state_rule="delta"))
    reference = copy.deepcopy(model)
    reference.gradient_checkpointing_disable()
    found = []
    for each in (model, reference):
        losses = []
        for name in ("default", "second"):
            each.base_model.set_adapter(name)
            losses.append(each(input_ids=IDS).logits.square().mean())
        each.base_model.set_adapter("default")
        found.append(torch.autograd.grad(losses[0], list(trainable(each).values()), allow_unused=True))
        del losses
    for ours, expected in zip(*found, strict=True):
        assert (ours is None) == (expected is None)
        assert expected is None or max_difference(ours, expected) < 1e-13


def test_the_same_checkpoints_as_in_quantised_training():
    base = tiny_base(dtype=torch.float32)
    base.is_loaded_in_8bit = True  # what PEFT's recipe for quantised bases looks at
    prepared = peft.prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": True})
    model = peft.get_peft_model(prepared, tc.ThoughtConfig(r=3, num_global_tokens=5, init_lora_weights=False)).train()
    got = gradients(model)
    model.gradient_checkpointing_disable()
    expected = gradients(model)
    assert {name for name in got if got[name] is None} == {name for name in expected if expected[name] is None}
    assert all(torch.allclose(got[name], expected[name], atol=1e-6) for name in got if got[name] is not None)


def test_the_adapter_switched_off():
    model = checkpointed(tiny_model(modules_to_save=["norm"]), use_reentrant=False)
    with model.disable_adapter():
        off = model(input_ids=IDS).logits
    assert torch.equal(off, tiny_base()(input_ids=IDS).logits)


@pytest.mark.parametrize("implementation", CheckpointImpl)
def test_checkpoints_of_another_library_are_refused_in_the_backward_pass(implementation):
    """Those of torch, which accelerate's FSDP plugin puts around layers, know nothing of the states."""
    model = tiny_model().train()
    model.enable_input_require_grads()
    layers = model.base_model.backbone.layers
    for index, layer in enumerate(layers):
        layers[index] = CheckpointWrapper(layer, checkpoint_impl=implementation)
    with pytest.raises(ValueError, match=r"gradient_checkpointing_enable\(\)"):
        gradients(model)


def test_generate_in_training_mode_is_refused():
    model = checkpointed(tiny_model())
    with pytest.raises(ValueError, match=r"model.eval\(\) or model.gradient_checkpointing_disable\(\)"):
        model.generate(IDS, max_new_tokens=3, pad_token_id=0)
    model.eval()
    plain = tiny_model().generate(IDS, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(IDS, max_new_tokens=12, do_sample=False, pad_token_id=0), plain)


def test_unloading_gives_the_layers_their_own_checkpoints_back():
    model = checkpointed(tiny_model(), use_reentrant=False)
    own = [layer._gradient_checkpointing_func for layer in model.base_model.backbone.layers]
    gradients(model)
    assert [layer._gradient_checkpointing_func for layer in model.base_model.backbone.layers] != own
    base = model.unload()
    assert [layer._gradient_checkpointing_func for layer in base.model.layers] == own


def test_the_learner_still_asks_for_its_own_checkpoints():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"gradient_checkpointing_disable\(\)"):
        tc.replay(checkpointed(model), rollouts)
