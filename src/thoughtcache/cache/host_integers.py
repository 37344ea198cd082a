"""Integers that the host knows, and the way of small things from the host to the device."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]


def to_device(values: Integers, device: torch.device) -> Int[Tensor, "..."]:
    """Host integers on the device; on CUDA the copy does not block."""
    return from_host(torch.from_numpy(values.astype(np.int64)), device)


def from_host(values: Shaped[Tensor, "*B"], device: torch.device) -> Shaped[Tensor, "*B"]:
    """A tensor of the host on the device; on CUDA the copy does not block."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
