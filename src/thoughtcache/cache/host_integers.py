"""Integers that the host knows, and their way to the device."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]


def to_device(values: Integers, device: torch.device) -> Int[Tensor, "..."]:
    """Host integers on the device; on CUDA the copy does not block."""
    index = torch.from_numpy(values.astype(np.int64))
    if device.type == "cuda":
        return index.pin_memory().to(device, non_blocking=True)
    return index.to(device)
