"""Where the parameters behind the states live: on the first adapted linear of each decoder layer.

PEFT saves, loads, moves and deletes what hangs on an adapted linear under a name of `adapter_layer_names`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from thoughtcache.config import ThoughtConfig
from thoughtcache.state.attention.weights import MEMORIES, MemoryShape, MemoryWeights
from thoughtcache.state.encoder import ENCODERS, ThoughtEncoder
from thoughtcache.state.parameters import StateParameters

HOLDERS = (ENCODERS, MEMORIES)


def holder_of(config: ThoughtConfig) -> str:
    """Where the parameters behind the states of an adapter hang."""
    return MEMORIES if config.memory == "attention" else ENCODERS


def new_parameters(
    config: ThoughtConfig, *, layer_index: int, heads: tuple[int, int, int], dtype: torch.dtype
) -> StateParameters:
    """What is behind the states of a decoder layer, at its start.

    Args:
        config: settings of the adapter.
        layer_index: the decoder layer.
        heads: query heads, key-value heads, and the size of one.
        dtype: dtype of the parameters, at least fp32.
    """
    _, kv_heads, head_size = heads
    if config.memory == "attention":
        shape = memory_shape(config, heads)
        return MemoryWeights(layer_index=layer_index, shape=shape, dtype=dtype)
    return ThoughtEncoder(
        layer_index=layer_index,
        kv_size=kv_heads * head_size,
        num_global_tokens=config.num_global_tokens,
        rank=config.r,
        rule=config.state_rule,
        write_scale=config.write_scale,
        dtype=dtype,
    )


def memory_shape(config: ThoughtConfig, heads: tuple[int, int, int]) -> MemoryShape:
    """The sizes of a memory in attention space.

    Args:
        config: settings of the adapter.
        heads: query heads, key-value heads, and the size of one.
    """
    query_heads, kv_heads, head_size = heads
    return MemoryShape(
        kv_heads=kv_heads,
        query_heads=query_heads,
        head_size=head_size,
        num_features=config.memory_features,
        feature_map=config.memory_feature_map,
        write=config.memory_write,
        read=config.memory_read,
        initial_weight=config.memory_weight,
    )


def attach(module: Any, holder: str, adapter_name: str, parameters: StateParameters) -> None:
    """Put the parameters of a decoder layer on an adapted linear.

    Args:
        module: the adapted linear.
        holder: one of `HOLDERS`.
        adapter_name: the adapter that they belong to.
        parameters: parameters behind the states of the decoder layer.
    """
    if holder not in module._modules:
        module.add_module(holder, nn.ModuleDict())
        module.adapter_layer_names = (*module.adapter_layer_names, holder)
    module.get_submodule(holder).update({adapter_name: parameters})


def by_layer(model: nn.Module, holder: str, adapter_name: str) -> dict[int, StateParameters]:
    """The parameters of one adapter by decoder layer."""
    holders = (module.get_submodule(holder) for module in model.modules() if holder in module._modules)
    found = [one[adapter_name] for one in holders if isinstance(one, nn.ModuleDict) and adapter_name in one]
    return {one.layer_index: one for one in found if isinstance(one, StateParameters)}


def of_all_layers(model: nn.Module, holder: str, adapter_name: str, num_layers: int) -> list[StateParameters]:
    """The parameters of one adapter, in the order of the decoder layers.

    Raises:
        ValueError: if a decoder layer has no adapted linear and so none.
    """
    found = by_layer(model, holder, adapter_name)
    missing = sorted(set(range(num_layers)) - set(found))
    if missing:
        raise ValueError(f"decoder layers {missing} have no adapted linear; widen target_modules to every layer")
    return [found[index] for index in range(num_layers)]


def without_adapter_name(key: str, adapter_name: str) -> str | None:
    """A name of a saved parameter of ours without the adapter's name in its middle; None for other parameters.

    Any name can load it then.
    """
    for holder in HOLDERS:
        marker = f".{holder}.{adapter_name}."
        if marker in key:
            return key.replace(marker, f".{holder}.")
    return None
