"""Samples with compiled steps and prints what came out; a process of its own, without checks of types at run time.

The checks wrap functions in ways that `torch.compile` cannot follow.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.backends.common import aot_autograd

import thoughtcache as tc
from support.models import tiny_model

PROMPTS = [[3, 1, 4, 1, 5], [6, 5], [3, 1, 4, 1, 5], [9], [2, 7, 1, 8]]
OPTIONS: dict[str, Any] = {"max_new_tokens": 13, "seed": 1, "batch_size": 2, "stop_ids": [3]}


def compare(model: Any) -> dict[str, Any]:
    """Compiled against ordinary rollouts."""
    expected, found = (tc.rollout(model, PROMPTS, compile=compiled, **OPTIONS) for compiled in (False, True))
    pairs = [
        (getattr(one, name), getattr(other, name))
        for one, other in zip(found, expected, strict=True)
        for name in ("logprobs", "states")
        if getattr(other, name) is not None
    ]
    return {
        "lengths": [len(r.token_ids) for r in expected],
        "same_tokens": [r.token_ids for r in found] == [r.token_ids for r in expected],
        "gap": max((one - other).abs().max().item() for one, other in pairs),
        "logprob": expected[0].logprobs[0].item(),
    }


def written_inputs(model: Any) -> list[tuple[list[int], list[int]]]:
    """Of every graph: the inputs that it writes to, and those whose address is fixed."""
    found: list[tuple[list[int], list[int]]] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        context = torch._guards.TracingContext.get()
        assert context.fw_metadata is not None
        found.append((context.fw_metadata.mutated_inp_runtime_indices, context.fw_metadata.static_input_indices))
        return graph

    backend = aot_autograd(fw_compiler=look, inference_compiler=look)
    with patch.object(torch, "compile", partial(torch.compile, backend=backend)):
        tc.rollout(model, PROMPTS, compile=True, **OPTIONS)
    return found


def main() -> None:
    """Before and after an optimiser step, in which nothing may be compiled again."""
    torch.set_num_threads(1)
    model = tiny_model(window=4, evict_fraction=0.5, state_rule="gated")
    before = compare(model)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).mul_(3.0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        after = compare(model)
    scored = tiny_model(window=8, evict_fraction=0.25, eviction="snapkv", positions="rolling")
    remembers = tiny_model(window=4, evict_fraction=0.5, memory="attention", memory_features=6, memory_write="delta")
    read = tiny_model(window=4, evict_fraction=0.5, state_norm="orthogonal", state_norm_at="read")
    uneven = tiny_model(window=6, evict_fraction=1 / 3, eviction_budgets=[8, 4], eviction="random")
    by_head = tiny_model(window=6, evict_fraction=1 / 3, eviction_budgets=[[8, 4], [6, 6]], eviction="snapkv")
    print(json.dumps([before, after, written_inputs(model), *map(compare, (scored, remembers, read, uneven, by_head))]))


if __name__ == "__main__":
    main()
