"""What the parameters behind a state have in common: they never fall below fp32, and they are whole on every process.

What a state accumulates over hundreds of evictions does not survive the 8 bits of half precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

SHARDED = (
    "the parameters behind the thought states are sharded, but they are read outside of the layer that FSDP or ZeRO-3 "
    "gathers; keep the adapter whole on every process (DDP, ZeRO-2, or fully_shard with ignored_params for the "
    "parameters named {name})"
)


class StateParameters(nn.Module):
    """A module whose tensors stay in at least fp32.

    Casting a model to half precision (`model.to(torch.bfloat16)`, `model.half()`) moves it and leaves it in fp32.

    Args:
        layer_index: the decoder layer it belongs to.
        name: the part of the names of its parameters by which a user can tell them.
    """

    def __init__(self, layer_index: int, name: str) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.name = name

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StateParameters:
        """What every move and cast of a module comes down to; here no tensor ends below fp32."""

        def at_least_fp32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            wanted = torch.promote_types(moved.dtype, torch.float32)
            # From the tensor itself where its precision was lost, not from the rounded copy.
            return moved if moved.dtype == wanted else tensor.to(device=moved.device, dtype=wanted)

        super()._apply(at_least_fp32, recurse)  # type: ignore[no-untyped-call]
        return self

    def whole(self, name: str) -> Tensor:
        """A parameter in at least fp32, with gradient; also where a block freezes it after this call, as PEFT's
        `disable_adapter` does.

        Raises:
            ValueError: if this process holds a shard of it only.
        """
        value = self._parameters[name]
        assert value is not None, name
        if isinstance(value, DTensor) or not value.numel():
            raise ValueError(SHARDED.format(name=self.name))
        return value.view_as(value).to(torch.promote_types(value.dtype, torch.float32))
