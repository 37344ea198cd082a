"""Where the parameters behind the states live: on the first adapted linear of each decoder layer.

PEFT saves, loads, moves and deletes what hangs on an adapted linear under a name of `adapter_layer_names`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from thoughtcache.config import ThoughtConfig
from thoughtcache.state.adapter_state import AdapterState
from thoughtcache.state.attention.weights import MEMORIES, MemoryShape, MemoryWeights
from thoughtcache.state.base_start import leading_directions
from thoughtcache.state.encoder import ENCODERS, ThoughtEncoder
from thoughtcache.state.parameters import StateParameters

HOLDERS = (ENCODERS, MEMORIES)


def holders_of(config: ThoughtConfig) -> list[str]:
    """Where the parameters behind the states of an adapter hang; nowhere for plain LoRA."""
    has_states = ((ENCODERS, not config.has_plain_linears), (MEMORIES, config.has_attention_memory))
    return [holder for holder, is_there in has_states if is_there]


def adapter_state(config: ThoughtConfig, encoders: list[ThoughtEncoder]) -> AdapterState:
    """The memory of an adapter with these encoders, whose linears read it; none where the adapter is off."""
    return AdapterState(
        encoders,
        initial=config.initial_state,  # type: ignore[arg-type]
        absorbs=config.absorb and bool(encoders),
        rule=config.state_rule,
        norm=config.state_norm,  # type: ignore[arg-type]
        norm_at=config.state_norm_at,  # type: ignore[arg-type]
    )


def new_parameters(
    config: ThoughtConfig, *, layer_index: int, layer: nn.Module, heads: tuple[int, int, int], dtype: torch.dtype
) -> dict[str, StateParameters]:
    """What is behind the states of a decoder layer, at its start, by where it hangs.

    Args:
        config: settings of the adapter.
        layer_index: the decoder layer's number.
        layer: the decoder layer.
        heads: query heads, key-value heads, and the size of one.
        dtype: dtype of the parameters, at least fp32.

    Raises:
        ValueError: if they start from weights of the layer that cannot be read.
    """
    found: dict[str, StateParameters] = {}
    if config.has_attention_memory:
        found[MEMORIES] = MemoryWeights(layer_index=layer_index, shape=memory_shape(config, heads), dtype=dtype)
    if not config.has_plain_linears:
        _, kv_heads, head_size = heads
        found[ENCODERS] = _new_encoder(config, layer_index, layer, kv_heads * head_size, dtype)
    return found


def _new_encoder(
    config: ThoughtConfig, layer_index: int, layer: nn.Module, kv_size: int, dtype: torch.dtype
) -> ThoughtEncoder:
    """What is behind the state inside the LoRA factors; arguments as in `new_parameters`, and K."""
    encoder = ThoughtEncoder(
        layer_index=layer_index,
        kv_size=kv_size,
        num_global_tokens=config.num_global_tokens,
        rank=config.r,
        rule=config.state_rule,
        write_scale=config.write_scale,
        dtype=dtype,
    )
    # An adapter that is loaded to be used has its weights, and the base may be quantised by now.
    if config.encoder_start == "base" and not config.inference_mode:
        for name, projection in (("k_proj", encoder.key_projection), ("v_proj", encoder.value_projection)):
            directions = leading_directions(base_weight(layer, name, kv_size), config.r)
            with torch.no_grad():
                projection.copy_(directions)
    return encoder


def base_weight(layer: nn.Module, name: str, kv_size: int) -> Tensor:
    """The weight [K, d_in] of a linear of the base's attention, under an adapter or not.

    Args:
        layer: the decoder layer.
        name: "k_proj" or "v_proj".
        kv_size: K.

    Raises:
        ValueError: if the layer has no such linear, or its weight is quantised, sharded or without values.
    """
    wanted = f"encoder_start='base' starts from the weight of self_attn.{name}"
    modules = dict(layer.named_modules())
    if f"self_attn.{name}" not in modules:
        raise ValueError(
            f"{wanted}, and {type(layer).__name__} has no linear of that name (queries, keys and values in one?); "
            "use encoder_start='random'"
        )
    module: Any = modules[f"self_attn.{name}"]
    module = module.get_base_layer() if isinstance(module, LoraLayer) else module
    weight: Tensor | None = module._parameters.get("weight")
    is_plain = type(module) is nn.Linear and weight is not None and not is_traceable_wrapper_subclass(weight)
    if weight is None or not is_plain or not weight.is_floating_point() or weight.shape[0] != kv_size:
        raise ValueError(
            f"{wanted}, and that of this base is quantised or sharded ({type(module).__name__}); use "
            "encoder_start='random', or load the base in float32, bfloat16 or float16, whole on every process"
        )
    if weight.is_meta:
        raise ValueError(
            f"{wanted}, and that of this base is on the meta device, without values; load the base's weights before it "
            "is given the adapter, or use encoder_start='random'"
        )
    return weight


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


def num_parameters(config: ThoughtConfig, heads: tuple[int, int, int]) -> int:
    """Number of parameters behind the state of one decoder layer; 0 where there is none.

    Args:
        config: settings of the adapter.
        heads: query heads, key-value heads, and the size of one.
    """
    counted = replace(config, encoder_start="random")  # which does not look at weights of a layer
    with torch.device("meta"):
        made = new_parameters(counted, layer_index=0, layer=nn.Identity(), heads=heads, dtype=torch.float32)
    return sum(parameter.numel() for part in made.values() for parameter in part.parameters())


def state_shape(config: ThoughtConfig, heads: tuple[int, int, int]) -> tuple[int, ...]:
    """Shape of the state of one decoder layer of one sequence; (0,) where nothing has one, flat where two have.

    Args:
        config: settings of the adapter.
        heads: query heads, key-value heads, and the size of one.
    """
    of_linears = () if config.has_plain_linears else (config.num_global_tokens, config.r)
    if not config.has_attention_memory:
        return of_linears or (0,)
    shape = memory_shape(config, heads)
    return (math.prod(of_linears) + shape.state_floats,) if of_linears else shape.state_shape


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


def is_of_states(name: str) -> bool:
    """Whether a parameter of this name is one of those behind the states."""
    return any(f".{holder}." in name for holder in HOLDERS)


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
