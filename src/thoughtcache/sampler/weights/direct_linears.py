"""Adapted linears without PEFT's own Python around every call, for as long as one sampler decodes.

A decoding step of a small batch is bound by the number of calls: two hundred adapted linears, each with PEFT's checks,
look-ups and two further modules. `direct_linears` binds, once per rollout, what a call needs. The arithmetic is that of
`adapter/variant.py`; what is not of the plain form keeps PEFT's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

from thoughtcache.adapter.variant import ThoughtVariant, is_prepared_for_hotswap, modulate


@contextmanager
def direct_linears(model: nn.Module) -> Iterator[None]:
    """Run the plain adapted linears of a model directly in this block.

    Args:
        model: model with the adapter that is active for the whole block; its weights may change in place only.
    """
    changed = []
    try:
        for module in model.modules():
            forward = _direct_forward(module) if isinstance(module, Linear) else None
            if forward is not None:
                module.forward = forward  # this attribute of the instance hides the method of its class
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _direct_forward(module: Linear) -> Callable[[Tensor], Tensor] | None:
    """A function for what PEFT's `forward` comes to; None if that is more than a plain linear and two plain factors."""
    active = module.active_adapters
    if module.disable_adapters or module.merged or len(active) != 1 or active[0] not in module.lora_A:
        return None
    variant: Any = module.lora_variant.get(active[0])
    base, down, up = module.get_base_layer(), module.lora_A[active[0]], module.lora_B[active[0]]
    if not isinstance(variant, ThoughtVariant) or not (_is_plain(base) and _is_plain(down) and _is_plain(up)):
        return None
    if is_prepared_for_hotswap(module, active[0]):
        return None  # PEFT's way comes to the refusal
    # Somebody else's forward, for example of weights that are loaded when they are needed.
    if any("forward" in vars(part) for part in (module, down, up)):
        return None
    binding, layer, scaling = variant.binding, variant.layer_index, module.scaling[active[0]]
    base_forward, down_weight, up_weight = base.forward, down.weight, up.weight

    def forward(x: Tensor) -> Tensor:
        result = base_forward(x)
        states = binding.states
        state = None if states is None else states[layer]
        down = linear(x.to(down_weight.dtype), down_weight)
        return modulate(result, down, state, up_weight, scaling, in_place=True).to(result.dtype)

    return forward


def _is_plain(module: object) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and not module._forward_hooks and not module._forward_pre_hooks
