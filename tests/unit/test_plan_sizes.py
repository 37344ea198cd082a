"""Bundled configurations and parameter counts, against the models themselves on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, SmolLM3Config

from support.plans import SHAPES
from thoughtcache.config import ThoughtConfig
from thoughtcache.planning.model_configs import bundled_models, load_config
from thoughtcache.planning.model_size import adapter_size, model_size

# As published on the models' own pages.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
}


def count(config: object) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_have_the_parameters_of_the_models(name):
    assert model_size(load_config(name)).parameters == count(load_config(name))


def test_published_counts():
    for name, parameters in PUBLISHED.items():
        assert model_size(load_config(name)).parameters == parameters


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, head_dim=10,
                    num_key_value_heads=2, vocab_size=40, attention_bias=True, mlp_bias=True),
        SmolLM3Config(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, vocab_size=40, pad_token_id=None),
        MistralConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, vocab_size=40, sliding_window=None),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_other_supported_models(config):
    assert model_size(config).parameters == count(config)


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state_rule": "delta", "r": 7, "num_global_tokens": 5},
        {"state_rule": "decay"},
        {"initial_state": "identity", "absorb": False, "r": 32},
        {"target_modules": ["q_proj", "down_proj"]},
        {"memory": "attention", "memory_write": "delta", "memory_read": "added", "r": 5},
    ],
)
def test_adapters(shape, options):
    expected = adapter_size(SHAPES[shape], ThoughtConfig(**options))
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(SHAPES[shape])
        model = peft.get_peft_model(base, ThoughtConfig(**options), low_cpu_mem_usage=True)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert expected.parameters == sum(trainable.values())
    assert expected.encoders == sum(value for name, value in trainable.items() if "lora_thought_" in name)


def test_names_files_and_folders(tmp_path: Path):
    values = load_config("Qwen/Qwen2.5-3B").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(values, default=str))
    sizes = {load_config(str(where)).hidden_size for where in (tmp_path, tmp_path / "config.json", "qwen2.5-3b")}
    assert sizes == {2048}


def test_refusals(tmp_path: Path):
    (tmp_path / "text.json").write_text("not json")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "gpt2.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"nobody/none.*bundled name: .*Qwen/Qwen2.5-7B-Instruct"):
        load_config("nobody/none")
    with pytest.raises(ValueError, match="does not exist"):
        load_config(str(tmp_path))
    with pytest.raises(ValueError, match="is not JSON"):
        load_config(str(tmp_path / "text.json"))
    with pytest.raises(ValueError, match="has no model_type"):
        load_config(str(tmp_path / "list.json"))
    with pytest.raises(ValueError, match="model type 'gpt2' is not supported"):
        load_config(str(tmp_path / "gpt2.json"))
