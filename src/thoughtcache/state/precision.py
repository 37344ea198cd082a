"""Arithmetic of the thought state under an autocast region: it stays in the precision of the state.

The state is recurrent, so that what one eviction rounds all later ones carry on. An autocast region is meant for the
layers of the model, and would run every product of the state in half precision.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def state_precision(device_type: str) -> AbstractContextManager[object]:
    """A block in which autocast is off.

    Args:
        device_type: device type of the tensors, "cpu" or "cuda".
    """
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
