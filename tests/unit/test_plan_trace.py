"""Closed form against the real code under fake tensors: memory and arithmetic of the learner."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.plans import cpu_setting
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.model_size import adapter_size, model_size
from thoughtcache.planning.plan import learner_bytes
from thoughtcache.planning.setting import side_by_side
from thoughtcache.planning.step_flops import learner_flops_per_row
from thoughtcache.recipes.plan.trace import trace_as_it_is, trace_learner, with_layers

TOLERANCE = 0.05
"""Half of what is promised: these are models of the same code, and what differs is known."""
LAYERS = 2

CASES = {
    "whole segments": cpu_setting(),
    "chunks": cpu_setting(chunk_tokens=32),
    "half precision": cpu_setting("qwen2", dtype="bfloat16"),
    "half precision, chunks": cpu_setting("qwen2", dtype="bfloat16", chunk_tokens=16),
    "norms of queries and keys": cpu_setting("qwen3", dtype="bfloat16"),
    "checkpoints of layers": cpu_setting(checkpoint_layers=True),
    "checkpoints of layers, half precision": cpu_setting("qwen2", dtype="bfloat16", checkpoint_layers=True),
    "checkpoints of layers, chunks": cpu_setting("qwen2", checkpoint_layers=True, chunk_tokens=16),
    "gated rule": cpu_setting("qwen2", thought={"state_rule": "gated", "r": 8, "num_global_tokens": 4}),
    "everything kept": cpu_setting(recompute=False),
    "everything kept, large head": cpu_setting("qwen2", recompute=False, batch=12),
    "window of one": cpu_setting("qwen2", thought={"window": 1}, max_new_tokens=6),
    "rolling positions": cpu_setting("qwen2", thought={"positions": "rolling"}, dtype="bfloat16", chunk_tokens=16),
    "chosen evictions": cpu_setting("qwen2", thought={"eviction": "random"}, dtype="bfloat16", chunk_tokens=16),
    "both, everything kept": cpu_setting(
        "qwen2", thought={"eviction": "random", "positions": "rolling"}, recompute=False
    ),
    "budgets by layer": cpu_setting("qwen2", thought={"eviction_budgets": "pyramid"}, max_new_tokens=200),
    "budgets by layer, chosen, chunks": cpu_setting(
        "qwen2", thought={"eviction_budgets": "pyramid", "eviction": "random"}, dtype="bfloat16", chunk_tokens=16
    ),
    "budgets by layer, everything kept": cpu_setting(
        thought={"eviction_budgets": [96, 32], "positions": "rolling"}, recompute=False, max_new_tokens=150
    ),
    "budgets by head, chunks": cpu_setting(
        "qwen2", thought={"eviction_budgets": [[96, 32], [64, 64]]}, max_new_tokens=200, chunk_tokens=16
    ),
    "budgets by head, chosen, half precision": cpu_setting(
        "qwen2", thought={"eviction_budgets": [[96, 32], [64, 64]], "eviction": "random"}, dtype="bfloat16"
    ),
    "no eviction": cpu_setting("qwen2", thought={"window": 200}),
    "few targets": cpu_setting("qwen2", thought={"target_modules": ["q_proj", "v_proj"]}, dtype="bfloat16"),
    "blocks": cpu_setting("qwen2", gradient=2),
    "records of sampling": cpu_setting("qwen2", reuse=True, chunk_tokens=16),
    "unequal prompts": cpu_setting("qwen2", unequal_prompts=True, dtype="bfloat16"),
    "plain LoRA": side_by_side(cpu_setting("qwen2"))["LoRA_c"],
}


@pytest.mark.parametrize("name", CASES)
def test_the_replay(name):
    setting = with_layers(CASES[name], LAYERS)
    traced = trace_as_it_is(setting)
    flops = setting.batch * learner_flops_per_row(setting)
    closed = learner_bytes(setting)
    print(f"{name}: memory {closed / traced.peak_bytes - 1:+.3f}, arithmetic {flops / traced.flops - 1:+.3f}")
    assert closed == pytest.approx(traced.peak_bytes, rel=TOLERANCE)
    assert flops == pytest.approx(traced.flops, rel=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["smollm2", "qwen2"])
def test_the_checkpointed_learner(shape, dtype):
    setting = side_by_side(cpu_setting(shape, dtype=dtype, max_new_tokens=400))["LoRA, full cache"]
    traced = trace_as_it_is(with_layers(setting, LAYERS))
    assert learner_bytes(with_layers(setting, LAYERS)) == pytest.approx(traced.peak_bytes, rel=TOLERANCE)


def test_a_real_configuration_at_its_full_depth():
    model = load_config("Qwen/Qwen2.5-3B")
    setting = replace(cpu_setting(dtype="bfloat16", max_new_tokens=2048, prompt_tokens=128, batch=2), model=model)
    setting = replace(setting, thought=replace(setting.thought, window=1024, evict_fraction=0.5))
    traced = trace_learner(setting, depths=(2, 4))
    assert traced.parameters == model_size(model).parameters + adapter_size(model, setting.thought).parameters
    assert learner_bytes(setting) == pytest.approx(traced.peak_bytes, rel=TOLERANCE)
    assert setting.batch * learner_flops_per_row(setting) == pytest.approx(traced.flops, rel=TOLERANCE)


def test_an_error_in_the_closed_form_would_be_seen():
    setting = with_layers(CASES["half precision"], LAYERS)
    traced = trace_as_it_is(setting).peak_bytes
    for wrong in ({"dtype": "float32"}, {"batch": 5}, {"prompt_tokens": 48}):
        assert learner_bytes(replace(setting, **wrong)) != pytest.approx(traced, rel=TOLERANCE)
