"""A replay through a compiled backbone, beside one that is not; prints one line of JSON.

A process of its own: the run-time checks of annotations that the tests install cannot be compiled.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import thoughtcache as tc
from support.compare import gradient_error, gradients, weighted_loss
from support.models import tiny_model, use_norms_without_fp32

PROMPTS = {"equal": [[3, 1, 4, 1], [6, 5, 2, 2]], "padded": [[3, 1, 4, 1], [6]]}


def main() -> None:
    """Compile with `fullgraph`, so that a break would be an error."""
    torch.set_num_threads(1)
    adapter: dict[str, Any] = {"state_rule": "gated"}
    if sys.argv[2] == "attention":
        adapter = {"memory": "attention", "memory_features": 6, "memory_write": "delta"}
    model = tiny_model(window=4, evict_fraction=0.5, base={"num_hidden_layers": 1}, **adapter)
    use_norms_without_fp32(model)
    rollouts = tc.rollout(model, PROMPTS[sys.argv[1]], max_new_tokens=13, ignore_eos=True)

    def replayed() -> dict[str, torch.Tensor]:
        # Chunks: prompt, first segment, further segments after an eviction.
        return gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, chunk_tokens=4)))

    expected, graphs = replayed(), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    backbone = model.base_model.backbone
    backbone.forward = torch.compile(backbone.forward, backend=backend, fullgraph=True)
    errors, counts = [], []
    for _ in range(2):
        errors.append(gradient_error(replayed(), expected))
        counts.append(len(graphs))
    print(json.dumps({"errors": errors, "graphs": counts, "evictions": len(rollouts[0].evictions)}))


if __name__ == "__main__":
    main()
