"""What is written down about a run: every setting of the adapter, and which base, data and adapter they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.text_model import save_text_model
from transformers import AutoConfig

import thoughtcache as tc
from thoughtcache.recipes.run.settings import adapter_settings, base_identity, data_identity, file_identity

OTHER: dict[str, Any] = {
    "r": 3, "lora_alpha": 7, "target_modules": ["q_proj"], "num_global_tokens": 5, "window": 4, "evict_fraction": 0.5,
    "eviction": "random", "eviction_options": {"sinks": 2}, "eviction_budgets": "pyramid",
    "positions": "rolling", "initial_state": "zero", "absorb": False, "state_rule": "delta",
    "state_norm": "none", "state_norm_at": "read", "write_scale": 0.2, "encoder_start": "base", "read_start": 0.5,
    "use_rslora": True, "exclude_modules": ["k_proj"],
    "alpha_pattern": {"q_proj": 3}, "init_lora_weights": "gaussian",
    "memory": "attention", "memory_features": 6, "memory_feature_map": "hedgehog", "memory_write": "delta",
    "memory_read": "added", "memory_keys": "rotated", "memory_weight": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_of_the_adapter_shows(name: str) -> None:
    common = {"memory": "attention"} if name.startswith("memory_") else {}
    common |= {"eviction": "streaming"} if name == "eviction_options" else {}
    plain, other = tc.ThoughtConfig(**common), tc.ThoughtConfig(**common, **{name: OTHER[name]})
    assert adapter_settings(plain) != adapter_settings(other)
    assert json.loads(json.dumps(adapter_settings(other)))[name] == OTHER[name]


def test_every_field_of_ours_has_a_case_above() -> None:
    assert set(tc.ThoughtConfig.__annotations__) - OTHER.keys() == {"task_type"}


def test_what_is_no_setting_does_not_show() -> None:
    config = tc.ThoughtConfig(target_modules=["v_proj", "q_proj"])
    settings = adapter_settings(config)
    config.base_model_name_or_path, config.inference_mode, config.revision = "elsewhere", True, "main"
    assert adapter_settings(config) == settings
    assert adapter_settings(tc.ThoughtConfig(target_modules=["q_proj", "v_proj"])) == settings


def test_a_base_is_known_by_its_weights_and_not_by_its_path(tmp_path: Path) -> None:
    first, second = save_text_model(tmp_path / "a"), save_text_model(tmp_path / "b")

    def identity(folder: Path) -> str:
        return base_identity(AutoConfig.from_pretrained(folder), str(folder))

    assert identity(first) == identity(second)
    weights = second / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(bytes(data))
    assert identity(first) != identity(second)
    other = save_text_model(tmp_path / "c", rope_parameters={"rope_type": "default", "rope_theta": 5e4})
    assert identity(first) != identity(other), "the same weights, another configuration"


def test_data_and_files_are_known_by_their_content(tmp_path: Path) -> None:
    rows = [([3, 4], "1"), ([5], None)]
    assert data_identity(rows) == data_identity(list(rows))
    assert len({data_identity(r) for r in (rows, rows[::-1], rows[:1], [([3, 4], "2"), rows[1]])}) == 4
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert file_identity(tmp_path / "a") != file_identity(tmp_path / "b")
