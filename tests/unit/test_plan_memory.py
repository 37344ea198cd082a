"""The plan of a memory in attention space: against autograd, fake tensors, runs and PyTorch's counter."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import thoughtcache as tc
from support.plans import SHAPES, cpu_setting
from thoughtcache.adapter.state_parameters import memory_shape
from thoughtcache.cache.eviction import EVICTION_POLICIES
from thoughtcache.cache.rotation import KeyRotation
from thoughtcache.measuring.live_bytes import LiveBytes
from thoughtcache.planning.memory.attention_memory import (
    MemoryNumbers,
    read_saved_bytes,
    shared_bytes,
    write_saved_bytes,
)
from thoughtcache.planning.memory.parts import highest, total
from thoughtcache.planning.memory.replay import anchor_bytes, backward_parts
from thoughtcache.planning.memory.rollout import rollout_parts
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.plan import learner_bytes, make_plan
from thoughtcache.planning.setting import PlanSetting, side_by_side
from thoughtcache.planning.step_flops import learner_flops_per_row
from thoughtcache.recipes.plan.trace import blank_rollouts, depths_to_trace, trace_as_it_is, with_layers
from thoughtcache.state.attention.features import FEATURE_MAPS
from thoughtcache.state.attention.read import READS
from thoughtcache.state.attention.weights import MemoryWeights
from thoughtcache.state.attention.writes import WRITE_RULES
from thoughtcache.state.attention_memory import AttentionMemory
from thoughtcache.train.distill import distill_loss
from thoughtcache.train.distill_config import DistillConfig

LAYERS = 2
TOLERANCE = 0.03
ARITHMETIC = 0.05  # as in test_plan_trace.py
ROWS, TOKENS, EVICTED, QUERIES, HEADS, SIZE = 3, 20, 12, 6, 2, 32


def setting_of(shape: str = "qwen2", thought: dict[str, Any] | None = None, **changes: Any) -> PlanSetting:
    """`cpu_setting` with a memory in attention and two layers: a window of 64, of which 32 leave once."""
    memory = {"memory": "attention", "num_global_tokens": 32, **(thought or {})}
    return with_layers(cpu_setting(shape, thought=memory, **{"max_new_tokens": 90, **changes}), LAYERS)


def kept(run: Any, memory: AttentionMemory, *given: Tensor) -> int:
    """Bytes that autograd keeps of a function, without its inputs and the memory's parameters."""
    tensors = memory.tensors
    known = [*memory.parameters(), *given]
    known += [value for name in tensors[0].__slots__ if isinstance(value := getattr(tensors[0], name), Tensor)]
    addresses = {tensor.untyped_storage().data_ptr() for tensor in known}
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        return found.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(one.untyped_storage().nbytes() for address, one in found.items() if address not in addresses)


@pytest.mark.parametrize("keys", ["content", "rotated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("features", "write", "read"),
    [one for one in product(FEATURE_MAPS, WRITE_RULES, READS) if one[2] == "added" or FEATURE_MAPS[one[0]].is_positive],
)
def test_what_a_read_and_a_write_keep(features: str, write: str, read: str, dtype: torch.dtype, keys: str) -> None:
    config = tc.ThoughtConfig(
        memory="attention", memory_feature_map=features, memory_write=write, memory_read=read, memory_keys=keys
    )
    shape = memory_shape(config, (QUERIES, HEADS, SIZE))
    turns = keys == "content"
    rotations = [KeyRotation(frequencies=torch.rand(SIZE // 2, dtype=torch.float64))] if turns else None
    memory = AttentionMemory([MemoryWeights(layer_index=0, shape=shape, dtype=torch.float32)], rotations)
    numbers = MemoryNumbers(shape=shape, turns=turns, chooses=False, base=dtype.itemsize)
    state = torch.rand(ROWS, *shape.state_shape, requires_grad=True)

    past = torch.rand(2, ROWS, HEADS, 40, SIZE, dtype=dtype, requires_grad=True)
    leaving, values = past[:, :, :, 5 : 5 + EVICTED]
    absorb, positions = memory.absorber(), torch.arange(EVICTED).expand(ROWS, 1, -1)
    assert absorb is not None
    found = kept(lambda: absorb(0, state, leaving, values, positions), memory, state, past)
    assert write_saved_bytes(numbers, ROWS, EVICTED) == pytest.approx(found, rel=0.001)

    made = torch.rand(2, ROWS, TOKENS, QUERIES, SIZE, dtype=dtype, requires_grad=True)
    read_state = memory.reader().of_attention([state], torch.arange(TOKENS).expand(ROWS, -1))
    assert read_state is not None
    window = torch.rand(ROWS, TOKENS, QUERIES, 2, dtype=dtype, requires_grad=True) if read == "joint" else None
    given = [one for one in (state, made, window) if one is not None]
    found = kept(lambda: read_state(0, made[0].transpose(1, 2), made[1], window), memory, *given)
    assert read_saved_bytes(numbers, ROWS, TOKENS) + shared_bytes(numbers, ROWS, TOKENS) == found


@pytest.mark.parametrize("write", WRITE_RULES)
@pytest.mark.parametrize("memory", ["attention", "both"])
@pytest.mark.parametrize("read", sorted(READS))
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_parameters_and_states_are_those_of_the_adapter(shape: str, write: str, read: str, memory: str) -> None:
    thought = {"memory": memory, "memory_write": write, "memory_read": read, "memory_features": 6, "r": 5}
    setting = setting_of(shape, thought)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(setting.model)
        model = peft.get_peft_model(base, copy.deepcopy(setting.thought), low_cpu_mem_usage=True)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    plan = make_plan(setting)
    assert plan.peak.parts["adapter"] == 4 * trainable
    assert plan.peak.parts["optimizer"] == 8 * trainable
    if memory == "both":  # whose first state takes arithmetic, which the meta device has not
        shape_of_memory = setting.attention_memory
        assert shape_of_memory is not None
        numbers = shape_of_memory.state_floats + setting.thought.num_global_tokens * setting.thought.r
    else:
        numbers, tokens = model.base_model.state_size()
        assert setting.tokens_worth == tokens
    assert setting.state_numbers == numbers
    assert anchor_bytes(replace(setting, max_new_tokens=120), 3) == 2 * 3 * LAYERS * numbers * 4


LEARNER = {
    "chunks": setting_of(chunk_tokens=32),
    "small chunks, one row": setting_of(chunk_tokens=16, batch=1, group=2, max_new_tokens=70),
    "half precision": setting_of("qwen3", dtype="bfloat16", chunk_tokens=32),
    "half precision, rotated": setting_of(
        "qwen3", {"memory_keys": "rotated"}, dtype="bfloat16", chunk_tokens=32
    ),
    "rotated, decay, hedgehog": setting_of(
        thought={"memory_keys": "rotated", "memory_write": "decay", "memory_feature_map": "hedgehog"}, chunk_tokens=32
    ),
    "delta, unit, added": setting_of(
        thought={
            "memory_write": "delta", "memory_feature_map": "unit", "memory_read": "added", "memory_features": 64
        },
        chunk_tokens=32,
    ),
    "checkpoints of layers": setting_of(checkpoint_layers=True, chunk_tokens=32, dtype="bfloat16"),
    "everything kept": setting_of(recompute=False),
    "everything kept, delta": setting_of(thought={"memory_write": "delta"}, recompute=False, dtype="bfloat16"),
    "chosen": setting_of(thought={"eviction": "random"}, recompute=False),
    "chosen, rolling": setting_of(thought={"eviction": "random", "positions": "rolling"}, recompute=False),
    "chosen, in pieces": setting_of(thought={"eviction": "random"}, chunk_tokens=32),
    "few targets": setting_of(thought={"target_modules": ["q_proj", "v_proj"]}, chunk_tokens=32),
    "blocks": setting_of(gradient=2),
    "records of sampling": setting_of(reuse=True, chunk_tokens=32),
    "small window": setting_of(thought={"window": 8, "memory_features": 64}, max_new_tokens=20),
    "no eviction": setting_of(thought={"window": 200}, max_new_tokens=60),
    "joint": setting_of(thought={"memory_read": "joint"}, chunk_tokens=32),
    "joint, half precision": setting_of("qwen3", {"memory_read": "joint"}, dtype="bfloat16", chunk_tokens=32),
    "joint, rotated, delta": setting_of(
        "smollm2", {"memory_read": "joint", "memory_keys": "rotated", "memory_write": "delta"}, chunk_tokens=16
    ),
    "joint, checkpoints of layers": setting_of(
        thought={"memory_read": "joint"}, checkpoint_layers=True, chunk_tokens=32, dtype="bfloat16"
    ),
    "joint, everything kept": setting_of(thought={"memory_read": "joint"}, recompute=False),
    "both": setting_of(thought={"memory": "both", "num_global_tokens": 16}, chunk_tokens=32),
    "both, half precision": setting_of(
        "qwen3", {"memory": "both", "num_global_tokens": 16}, dtype="bfloat16", chunk_tokens=32
    ),
    "both, joint, gated": setting_of(
        thought={"memory": "both", "memory_read": "joint", "state_rule": "gated", "num_global_tokens": 16},
        chunk_tokens=32,
    ),
    "both, everything kept": setting_of(thought={"memory": "both", "num_global_tokens": 16}, recompute=False),
    "both, small window": setting_of(
        thought={"memory": "both", "window": 8, "memory_features": 64}, max_new_tokens=20
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNER)
def test_the_learner(name: str) -> None:
    setting = LEARNER[name]
    traced = trace_as_it_is(setting)
    flops = setting.batch * learner_flops_per_row(setting)
    closed = learner_bytes(setting)
    print(f"{name}: memory {closed / traced.peak_bytes - 1:+.3f}, arithmetic {flops / traced.flops - 1:+.3f}")
    assert closed == pytest.approx(traced.peak_bytes, rel=TOLERANCE)
    assert flops == pytest.approx(traced.flops, rel=ARITHMETIC)


@pytest.mark.parametrize("thought", [{}, {"memory_read": "joint"}, {"memory": "both"}], ids=str)
def test_distillation(thought: dict[str, Any]) -> None:
    setting = setting_of(thought=thought, objective="distill", max_new_tokens=90, batch=2, chunk_tokens=16)
    model = peft.get_peft_model(AutoModelForCausalLM.from_config(setting.model), copy.deepcopy(setting.thought))
    config = DistillConfig(output_dir="", chunk_tokens=16, max_new_tokens=90)
    with LiveBytes() as live:
        distill_loss(model, model, blank_rollouts(setting), config).backward()
    assert learner_bytes(setting) == pytest.approx(live.peak_bytes, rel=TOLERANCE)


SMALL: dict[str, Any] = {"pack_weights": False, "batch": 8, "group": 8}
SAMPLING = {
    "states above all": setting_of(
        thought={"window": 4, "memory_features": 64, "memory_write": "delta"}, max_new_tokens=40, **SMALL
    ),
    "rotated, decay": setting_of(
        "qwen3",
        {"window": 16, "memory_features": 32, "memory_write": "decay", "memory_keys": "rotated"},
        max_new_tokens=40,
        **SMALL,
    ),
    "one eviction": setting_of("qwen3", {"window": 48, "memory_features": 32}, max_new_tokens=50, **SMALL),
    "chosen": setting_of(
        "qwen3", {"window": 48, "memory_features": 32, "eviction": "random"}, max_new_tokens=50, **SMALL
    ),
    "chosen, rolling": setting_of(
        "qwen3",
        {"window": 48, "memory_features": 32, "eviction": "random", "positions": "rolling"},
        max_new_tokens=50,
        **SMALL,
    ),
    "joint": setting_of(
        "qwen3", {"window": 48, "memory_features": 32, "memory_read": "joint"}, max_new_tokens=90, **SMALL
    ),
    "joint, states above all": setting_of(
        thought={"window": 4, "memory_features": 64, "memory_write": "delta", "memory_read": "joint"},
        max_new_tokens=40,
        **SMALL,
    ),
    "both": setting_of("qwen3", {"memory": "both", "window": 48, "memory_features": 32}, max_new_tokens=60, **SMALL),
    "both, states above all": setting_of(
        thought={"memory": "both", "window": 4, "memory_features": 64}, max_new_tokens=40, **SMALL
    ),
    "both, chosen": setting_of(
        "qwen3",
        {"memory": "both", "window": 48, "memory_features": 32, "eviction": "random"},
        max_new_tokens=50,
        **SMALL,
    ),
}


def _sampled(setting: PlanSetting) -> int:
    """Highest bytes that are alive while a model with arbitrary weights samples."""
    model = peft.get_peft_model(AutoModelForCausalLM.from_config(setting.model), copy.deepcopy(setting.thought))
    with LiveBytes() as live:
        tc.rollout(
            model,
            [[1] * setting.prompt_tokens] * setting.batch,
            max_new_tokens=setting.max_new_tokens,
            ignore_eos=True,
            pack_weights=False,
        )
    return live.peak_bytes


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling(name: str) -> None:
    setting = SAMPLING[name]
    peak = _sampled(setting)
    closed = total(highest(rollout_parts(setting).values()))
    print(f"{name}: {closed / peak - 1:+.3f}")
    assert closed == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("eviction", sorted(EVICTION_POLICIES))
def test_what_an_eviction_policy_keeps(eviction: str) -> None:
    """Its last queries and running scores; what it works with while it chooses is small, but for one of them."""
    thought = {"window": 48, "memory_features": 32, "eviction": eviction}
    setting = setting_of("qwen3", thought, max_new_tokens=60, **SMALL)
    closed = total(highest(rollout_parts(setting).values()))
    # Expected attention forms a covariance of queries, [D, D] per head, which the plan leaves out.
    tolerance = 0.1 if eviction == "expected-attention" else TOLERANCE
    assert closed == pytest.approx(_sampled(setting), rel=tolerance)


def test_nothing_is_read_before_the_first_eviction() -> None:
    setting = setting_of(thought={"window": 200}, max_new_tokens=60)
    memory, plain = (backward_parts(one)["activations"] for one in (setting, side_by_side(setting)["LoRA_c"]))
    # What is left are the scaled projections of 2 + 14 heads, 64 x 8 numbers of 4 bytes each, of both layers.
    assert memory - plain == 2 * (2 + 14) * 64 * 8 * 4


def test_the_third_system_has_its_name() -> None:
    assert list(side_by_side(setting_of())) == ["LoRA, full cache", "LoRA_c", "memory in attention"]


def test_depths_beyond_a_bend() -> None:
    # At the head of four layers, in the layers of thirty.
    model = load_config("HuggingFaceTB/SmolLM2-135M")
    bent = replace(
        cpu_setting(thought={"window": 64}, checkpoint_layers=True, batch=8, prompt_tokens=512, dtype="bfloat16"),
        model=model,
        max_new_tokens=400,
    )
    first, second = depths_to_trace(bent)
    closed = {depth: learner_bytes(with_layers(bent, depth)) for depth in (4, 8, first, second)}

    def at_full_depth(a: int, b: int) -> float:
        return closed[a] + (30 - a) / (b - a) * (closed[b] - closed[a])

    assert first > 4
    assert at_full_depth(first, second) == pytest.approx(learner_bytes(bent), rel=0.005)
    assert at_full_depth(4, 8) < 0.98 * learner_bytes(bent)
    assert depths_to_trace(with_layers(bent, 3)) == (1, 3)
    straight = replace(bent, checkpoint_layers=False, recompute=False)
    assert depths_to_trace(straight) == (4, 8)
