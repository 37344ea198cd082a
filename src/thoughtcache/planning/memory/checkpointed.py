"""Memory of the usual full-cache learner, in closed form: whole rows at once, one checkpoint per decoder layer.

This is how TRL trains a LoRA by default: the forward pass keeps the input of every layer, [B, P + T, d]; the backward
pass runs one layer again with its graph. Assumed: an attention kernel that forms no mask (FlashAttention; with padded
rows and without it a [B, P + T, P + T] mask comes on top), and one of two heads:

- "chunked": TRL 1.16 scores tiles of 4096 tokens by 32768 entries, in place with Triton; the hidden states are kept,
  and their gradient is made in fp32;
- "materialised": fp32 logits [B, T, V] as in TRL's earlier versions under bf16 autocast; in the backward pass of the
  log-softmax by rows three fp32 tensors of that size meet.
"""

from __future__ import annotations

from thoughtcache.planning.memory.layer import (
    FP32,
    LayerNumbers,
    final_norm_bytes,
    forward_transient_bytes,
    graph_backward_bytes,
    graph_forward_bytes,
    kv_bytes,
    last_layer_bytes,
    layer_numbers,
)
from thoughtcache.planning.memory.parts import Parts, highest
from thoughtcache.planning.setting import PlanSetting, learner_chunks

TILE_TOKENS, TILE_ENTRIES = 4096, 32768
TORCH_TILE_BYTES = 29
"""Bytes per entry of a tile on top of it where Triton is missing."""


def checkpointed_parts(setting: PlanSetting) -> Parts:
    """The highest point of one micro-batch: at the head, or in the layer that runs again first."""
    numbers, rows = layer_numbers(setting), setting.batch
    (chunk,) = learner_chunks(setting)
    tokens, size = rows * chunk.columns, numbers.size
    residual = tokens * size.hidden * numbers.base
    checkpoints = size.layers * residual
    one_layer = last_layer_bytes(numbers, rows, chunk) + kv_bytes(numbers, rows, chunk.columns) // size.layers
    recomputed = one_layer + max(graph_forward_bytes(numbers, tokens), graph_backward_bytes(numbers, tokens))
    layer: Parts = {
        "checkpoints": checkpoints,
        "activations": recomputed + residual,  # and the gradient of its output
        "logits": 0,
    }
    head: Parts = {
        "checkpoints": checkpoints,
        "activations": residual + final_norm_bytes(numbers, tokens),
        "logits": head_bytes(numbers, setting),
    }
    return highest([layer, head])


def head_bytes(numbers: LayerNumbers, setting: PlanSetting) -> int:
    """Logits and what is made of them."""
    scored = setting.batch * setting.max_new_tokens
    if setting.logits == "materialised":
        return scored * numbers.size.vocabulary * 3 * FP32
    on_cpu = setting.device_type == "cpu"
    if on_cpu:  # all positions are scored there, and what the tile holds is copied many times
        scored += setting.batch * (setting.prompt_tokens - 1)
    tile = min(scored, TILE_TOKENS) * TILE_ENTRIES * numbers.base
    if on_cpu:
        tile += min(scored, TILE_TOKENS) * min(TILE_ENTRIES, numbers.size.vocabulary) * TORCH_TILE_BYTES
    return tile + scored * numbers.size.hidden * (numbers.base + FP32)


def reference_parts(setting: PlanSetting) -> Parts:
    """A pass without gradient over whole rows."""
    numbers = layer_numbers(setting)
    tokens = setting.batch * (setting.prompt_tokens + setting.max_new_tokens)
    layers = forward_transient_bytes(numbers, tokens)
    head = final_norm_bytes(numbers, tokens)
    logits = head_bytes(numbers, setting)
    return highest([{"activations": layers, "logits": 0}, {"activations": head, "logits": logits}])
