"""Linears on a CPU with their weights in oneDNN's own layout, for as long as one sampler decodes.

A round of decoding reads every weight once for a handful of rows. PyTorch leaves fp32 linears to MKL, which gets half
of the memory's bandwidth out of that on some processors, and hands bf16 to oneDNN in a layout that is rearranged on the
way. Packed once per rollout, the same products run up to twice as fast; they differ in rounding only. The price is
a second copy of the weights while it samples. On other devices, and where this PyTorch has no oneDNN, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)
SMALLEST = 2**16
"""Numbers in a matrix; below, the call costs more than it wins."""
ROWS = 32
"""Rows that the layout is made for. It serves fewer rows and a prefill as well."""
PAYS_FROM = 16
"""Thought tokens from which on packing pays, since it takes as long as a few rounds."""


def worth_packing(num_slots: int, max_new_tokens: int | None) -> bool:
    """Whether packing pays: sampling must be long enough to win back its time, and one row alone gains nothing.

    Args:
        num_slots: sequences at once.
        max_new_tokens: longest thoughts; None where they are not known and may be long.
    """
    return num_slots > 1 and (max_new_tokens is None or max_new_tokens >= PAYS_FROM)


@contextmanager
def packed_linears(model: nn.Module, adapter_prefix: str) -> Iterator[None]:
    """Run the large plain linears of a model from packed copies in this block, without gradients.

    Args:
        model: its weights must not change in the block.
        adapter_prefix: modules with this in their names keep their own weights: they are trained.
    """
    changed = []
    try:
        for name, module in model.named_modules():
            if adapter_prefix not in name and _can_pack(module):
                module.forward = _packed_forward(module)  # this attribute of the instance hides the method of its class
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _can_pack(module: nn.Module) -> bool:
    """Whether a module is a plain linear that gains from packing, and nothing asks for another precision."""
    if type(module) is not nn.Linear or "forward" in vars(module) or type(module.weight) is not nn.Parameter:
        return False
    weight = module.weight
    if weight.device.type != "cpu" or weight.dtype not in DTYPES or weight.numel() < SMALLEST:
        return False
    return not torch.is_autocast_enabled("cpu") and _onednn_takes(weight.dtype)


def _onednn_takes(dtype: torch.dtype) -> bool:
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if not (has_onednn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A function that returns what the linear returns, up to rounding."""
    bias, run = module.bias, torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), ROWS)

    def forward(x: Tensor) -> Tensor:
        output: Tensor = run(x, packed, bias, "none", [], "")
        return output

    return forward
