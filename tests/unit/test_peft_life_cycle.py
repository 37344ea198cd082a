"""A thought adapter lives as any PEFT adapter does: saved, loaded, renamed, switched, deleted, copied."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

import thoughtcache as tc
from support.compare import assert_close, max_difference, padded
from support.models import adapt, randomise_adapter, tiny_base, tiny_model, trainable
from support.rollouts import PROMPTS
from thoughtcache.state import STATE_RULES

WEIGHTS = "adapter_model.safetensors"
ENCODER_TENSORS = {
    "global_queries",
    "global_tokens",
    "query_projection",
    "key_projection",
    "value_projection",
    "log_write_scale",
}
OF_THE_RULE = {"gated": {"gate", "gate_bias"}, "delta": {"gate", "gate_bias"}, "decay": {"decay_logit"}}


def scores(model, rollouts):
    with torch.no_grad():
        return tc.replay(model, rollouts, anchored=False).logprobs


@pytest.fixture
def saved(tmp_path):
    """(model, its rollouts, the folder of its adapter); the base lies next to it."""
    base = tiny_base(dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = adapt(base, state_rule="gated", state_norm="spectral", state_norm_at="read", encoder_start="base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    return model, tc.rollout(model, PROMPTS, max_new_tokens=10), folder


def test_saved_files(saved):
    model, _, folder = saved
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, "adapter_config.json", "README.md"}
    tensors = load_file(folder / WEIGHTS)
    assert len(tensors) == len(trainable(model))
    assert not [name for name in tensors if "default" in name]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "THOUGHT"
    assert (config["num_global_tokens"], config["window"], config["state_rule"]) == (5, 5, "gated")
    assert (config["state_norm"], config["state_norm_at"], config["encoder_start"]) == ("spectral", "read", "base")


@pytest.mark.parametrize("rule", sorted(STATE_RULES))
def test_state_dict_holds_every_encoder_tensor(rule):
    model = tiny_model(state_rule=rule)
    tensors = get_peft_model_state_dict(model)
    for layer in range(2):
        names = {
            name.rsplit(".", 1)[1] for name in tensors if "lora_thought_encoder" in name and f"layers.{layer}." in name
        }
        assert names == ENCODER_TENSORS | OF_THE_RULE.get(rule, set())
    assert not [name for name in tensors if "default" in name]
    assert sum(value.numel() for value in tensors.values()) == sum(p.numel() for p in trainable(model).values())


@pytest.mark.parametrize("name", ["default", "another", "lora", "global"])
def test_reload_under_any_name(saved, name):
    model, rollouts, folder = saved
    again = PeftModel.from_pretrained(tiny_base(dtype=torch.float32), folder, adapter_name=name)
    assert torch.equal(scores(again, rollouts), scores(model, rollouts))
    assert [r.token_ids for r in tc.rollout(again, PROMPTS, max_new_tokens=10)] == [r.token_ids for r in rollouts]
    assert again.peft_config[name] == again.active_peft_config
    assert not trainable(again), "loaded for inference"


def test_reload_with_low_memory(saved):
    model, rollouts, folder = saved
    again = PeftModel.from_pretrained(tiny_base(dtype=torch.float32), folder, low_cpu_mem_usage=True)
    loaded = dict(again.named_parameters())
    assert all(torch.equal(loaded[name], parameter) for name, parameter in model.named_parameters())
    # The weights are mapped from the file, at another alignment, where the CPU's kernels round differently.
    assert_close(scores(again, rollouts), scores(model, rollouts), torch.float32)


def test_reload_to_go_on_training(saved):
    model, _, folder = saved
    again = PeftModel.from_pretrained(tiny_base(dtype=torch.float32), folder, is_trainable=True)
    assert trainable(again).keys() == trainable(model).keys()


def test_automatic_reload_with_its_base(saved):
    model, rollouts, folder = saved
    again = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert isinstance(again.peft_config["default"], tc.ThoughtConfig)
    assert torch.equal(scores(again, rollouts), scores(model, rollouts))


def test_saving_uses_no_pickle(saved, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("torch.save was called")

    monkeypatch.setattr(torch, "save", refuse)
    saved[0].save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).exists()


def test_a_corrupted_file_is_refused(saved):
    _, _, folder = saved
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"(?i)safetensor|incomplete|header|metadata"):
        PeftModel.from_pretrained(tiny_base(dtype=torch.float32), folder)


@pytest.mark.parametrize("other", [{"hidden_size": 24}, {"num_key_value_heads": 1}], ids=str)
def test_an_adapter_of_another_base_is_refused(saved, other):
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(tiny_base(dtype=torch.float32, **other), saved[2])


def test_two_adapters():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    first = scores(model, rollouts)
    torch.manual_seed(7)
    model.add_adapter("second", tc.ThoughtConfig(r=4, num_global_tokens=2, window=4, state_rule="delta"))
    randomise_adapter(model, seed=8)
    assert torch.equal(scores(model, rollouts), first), "adding an adapter changed the active one"

    model.set_adapter("second")
    second = tc.rollout(model, PROMPTS, max_new_tokens=10)
    assert second[0].settings.window == 4
    assert second[0].states.shape[2:] == (2, 4)
    assert all(".second." in name for name in trainable(model))
    assert max_difference(scores(model, second), padded(second)) < 1e-12
    with pytest.raises(ValueError, match="the adapter that sampled it"):
        tc.replay(model, rollouts)

    model.set_adapter("default")
    assert torch.equal(scores(model, rollouts), first)
    assert all(".default." in name for name in trainable(model))


def test_an_adapter_beside_plain_lora_with_one_state():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    first = scores(model, rollouts)
    plain = tc.ThoughtConfig(r=4, num_global_tokens=4, window=4, initial_state="identity", absorb=False)
    model.add_adapter("plain", plain)
    model.set_adapter("plain")
    assert tc.rollout(model, PROMPTS, max_new_tokens=10)[0].states is None
    model.set_adapter("default")
    assert torch.equal(scores(model, rollouts), first)


def test_several_active_adapters_are_refused():
    model = tiny_model()
    model.add_adapter("second", tc.ThoughtConfig(r=3, num_global_tokens=5))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="exactly one thought adapter"):
        tc.rollout(model, PROMPTS, max_new_tokens=2)


def test_delete_adapter():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    first = scores(model, rollouts)
    model.add_adapter("second", tc.ThoughtConfig(r=4, num_global_tokens=2))
    assert any(".second." in name for name, _ in model.named_parameters())
    model.delete_adapter("second")
    assert not [name for name, _ in model.named_parameters() if ".second." in name]
    assert torch.equal(scores(model, rollouts), first)


def test_merging_is_refused():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    for merge in (model.merge_and_unload, model.merge_adapter, lambda: model.merge_and_unload(safe_merge=True)):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_adapter_and_encoders_are_trainable():
    model = tiny_model(state_rule="gated")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
    kinds = {name.split(".lora_")[1].split(".")[0] for name in trainable(model)}
    assert kinds == {"A", "B", "thought_encoder"}


def test_one_encoder_per_decoder_layer():
    encoders = tiny_model().base_model.encoders()
    assert [encoder.layer_index for encoder in encoders] == [0, 1]
    assert encoders[0].global_queries.shape == (5, 2 * 4)
    assert tiny_model("qwen3").base_model.encoders()[0].global_queries.shape == (5, 2 * 6)


def test_plain_lora_has_no_encoder():
    model = tiny_model(initial_state="identity", absorb=False, r=5)
    assert not [name for name, _ in model.named_parameters() if "encoder" in name]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encoders_stay_fp32_on_a_base_in_less(dtype, autocast):
    config = tc.ThoughtConfig(r=3, num_global_tokens=5, window=5, state_rule="gated")
    model = peft.get_peft_model(tiny_base(dtype=dtype), config, autocast_adapter_dtype=autocast)
    assert {p.dtype for name, p in model.named_parameters() if "encoder" in name} == {torch.float32}
    assert {state.dtype for state in model.base_model.initial_states()} == {torch.float32}
    rollout = tc.rollout(model, PROMPTS, max_new_tokens=8)[0]
    assert rollout.states.dtype == torch.float32
    assert model(input_ids=torch.tensor([[1, 2]])).logits.dtype == dtype


def test_deepcopy_is_independent():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    expected = scores(model, rollouts)
    twin = copy.deepcopy(model)
    assert torch.equal(scores(twin, rollouts), expected)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(1.0)
    assert torch.equal(scores(twin, rollouts), expected)
    assert not torch.equal(scores(model, rollouts), expected)


def test_train_mode_scores_like_evaluation_mode():
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=10)
    assert torch.equal(scores(model.train(), rollouts), scores(model.eval(), rollouts))


def test_forward_with_labels_trains_the_initial_state():
    model = tiny_model()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model(input_ids=ids, labels=ids).loss.backward()
    reached = {name.rsplit(".", 1)[1] for name, p in trainable(model).items() if p.grad is not None and p.grad.any()}
    assert {"global_queries", "global_tokens", "query_projection", "key_projection", "value_projection"} <= reached
