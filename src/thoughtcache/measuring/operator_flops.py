"""Counts matmul arithmetic operator by operator, with PyTorch's own formulas.

PyTorch's `FlopCounterMode` also follows modules, through hooks that refuse `torch.autograd.grad` inside a backward
pass, which is how the replaying learner works. This counter does without, and knows the fused attention of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class OperatorFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager: floating-point operations of its block, a multiply-add as two.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and add its arithmetic."""
        result = func(*args, **(kwargs or {}))
        packet = getattr(func, "_overloadpacket", None)
        if packet is _ATTENTION:
            query, key, value = (_shape(tensor) for tensor in args[:3])
            self.total += sdpa_flop_count(query, _heads(key, query), _heads(value, query))  # type: ignore[no-untyped-call]
        elif packet is _ATTENTION_BACKWARD:
            query, key, value = (_shape(tensor) for tensor in args[1:4])
            self.total += sdpa_backward_flop_count(_shape(args[0]), query, _heads(key, query), _heads(value, query))  # type: ignore[no-untyped-call]
        elif packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **(kwargs or {}), out_val=result))
        return result


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _heads(shape: list[int], like: list[int]) -> list[int]:
    """Shared heads are counted once for every query head."""
    return [shape[0], like[1], *shape[2:]]
