"""The thought state stays in fp32, whatever a trainer does to the precision of trainable parameters."""

from __future__ import annotations

import torch
from torch import nn

from thoughtcache.adapter.state_parameters import HOLDERS


def encoders_to_fp32(model: nn.Module) -> None:
    """Undo TRL's cast of quantised models' trainable parameters to bfloat16 where it would reach the thought state."""
    for name, parameter in model.named_parameters():
        if any(holder in name for holder in HOLDERS):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
