"""Static shapes and `torch.compile` sample the policy that the ordinary steps sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close, padded
from support.models import VOCABULARY, tiny_model
from thoughtcache.sampler import decode_step

MODELS = {
    "sliding": tiny_model(window=4, evict_fraction=0.5, state_rule="gated"),
    "random": tiny_model(window=4, evict_fraction=0.5, eviction="random"),
    "snapkv": tiny_model(window=6, evict_fraction=0.4, eviction="snapkv", positions="rolling"),
    "h2o": tiny_model("qwen3", window=6, evict_fraction=0.4, eviction="h2o"),
    "rolling": tiny_model("qwen3", window=5, eviction="random", positions="rolling"),
    "smollm3": tiny_model("smollm3", window=3, positions="rolling", state_rule="delta"),
    "read": tiny_model(window=4, evict_fraction=0.5, state_norm="orthogonal", state_norm_at="read"),
    "plain LoRA": tiny_model(window=4, initial_state="identity", absorb=False, r=5),
    "full cache": tiny_model(window=None),
    "budgets by layer": tiny_model(window=6, evict_fraction=1 / 3, eviction="random", eviction_budgets=[8, 4]),
    "budgets by head": tiny_model(
        window=6, evict_fraction=1 / 3, eviction="h2o", positions="rolling", eviction_budgets=[[8, 4], [6, 6]]
    ),
    "attention memory": tiny_model(window=5, evict_fraction=0.4, memory="attention", memory_features=6),
}
COMPILED_GAP = 1e-5
"""A compiled graph rounds differently where transformers computes in fp32 (norms, rotary angles)."""


def assert_same(found: list[tc.Rollout], expected: list[tc.Rollout]) -> None:
    """The same tokens and records."""
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    assert [len(r.evictions) for r in found] == [len(r.evictions) for r in expected]
    for one, other in zip(found, expected, strict=True):
        pairs = [(one.logprobs, other.logprobs)]
        assert (one.states is None) == (other.states is None)
        if one.states is not None and other.states is not None:
            pairs.append((one.states, other.states))
        pairs += [
            (e.slots, f.slots) for e, f in zip(one.evictions, other.evictions, strict=True) if e.slots is not None
        ]
        for left, right in pairs:
            assert_close(left, right)


@pytest.fixture
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static shapes alone: the functions are run as they are."""
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: function)


@pytest.mark.usefixtures("_not_compiled")
@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=6), min_size=1, max_size=7),
    num_slots=st.integers(1, 5),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(sorted(MODELS)),
    stop_ids=st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
)
def test_static_shapes_give_the_same_rollouts(
    prompts: list[list[int]], num_slots: int, seed: int, kind: str, stop_ids: list[int]
) -> None:
    model = MODELS[kind]
    options: dict[str, Any] = {"max_new_tokens": 17, "seed": seed, "batch_size": num_slots, "stop_ids": stop_ids}
    found = tc.rollout(model, prompts, compile=True, record_kv="device", **options)
    expected = tc.rollout(model, prompts, record_kv="device", **options)
    assert_same(found, expected)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.keys_values, other.keys_values)
    with torch.no_grad():
        assert_close(tc.replay(model, found).logprobs, padded(found))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_steps_give_the_same_rollouts() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.compiled_worker"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    before, after, graphs, scored, remembers, read, uneven, by_head = json.loads(run.stdout.splitlines()[-1])
    assert len(set(before["lengths"])) > 2, "slots are not refilled in turn"
    for one in (before, after, scored, remembers, read, uneven, by_head):
        assert one["same_tokens"]
        assert one["gap"] < COMPILED_GAP
    # New weights, the same graphs: an optimiser step compiles nothing and is seen.
    assert abs(before["logprob"] - after["logprob"]) > COMPILED_GAP
    # A CUDA graph is only made of a graph that writes to fixed addresses.
    assert sum(bool(written) for written, _ in graphs) == 2, "the step and the eviction write to the cache"
    for written, fixed in graphs:
        assert set(written) <= set(fixed)


def test_what_cannot_be_compiled_whole_is_an_error() -> None:
    def breaks(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        decode_step.compile_whole(breaks, None)(torch.ones(2))
