"""The resident thoughts of some slots as one block of a buffer, by the cheapest indexing that reaches them.

Axes: S slots, H kv heads, C columns of a slot, n slots of the block, W resident thoughts, K of them that stay, D.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thoughtcache.cache.host_integers import Integers, to_device


class WindowBlock:
    """The place of the thoughts of some slots in the buffers of every layer.

    Args:
        slots: ascending; with static shapes some may stand there twice (what is written twice is the same).
        starts: first column of the thoughts of each.
        size: resident thoughts of each.
        shape: (H, C) of the buffers.
        device: device of the buffers.
        static_shapes: index them in the same way whatever the slots are.

    Attributes:
        rows: [n] the slots, on the device.
        span: the slots as a range, where they are one.
        aligned: whether the block is a plain part of the buffer in these slots: all thoughts begin in one column.
    """

    def __init__(
        self,
        slots: Integers,
        starts: Integers,
        size: int,
        *,
        shape: tuple[int, int],
        device: torch.device,
        static_shapes: bool,
    ) -> None:
        self.rows = to_device(slots, device)
        self.span = None
        if not static_shapes and slots[-1] - slots[0] == len(slots) - 1:
            self.span = slice(int(slots[0]), int(slots[-1]) + 1)
        self.aligned = not static_shapes and bool(starts.min() == starts.max())
        self.first, self.size = int(starts[0]), size
        if not self.aligned:
            heads, capacity = shape
            columns = to_device(starts, device).unsqueeze(1) + torch.arange(size, device=device)
            lines = (self.rows[:, None] * heads + torch.arange(heads, device=device)) * capacity
            self.lines = lines.unsqueeze(2) + columns.unsqueeze(1)  # [n, H, W] in [S H C]

    @property
    def index(self) -> slice | Int[Tensor, " n"]:
        """Indexes these slots in a tensor that has one row per slot."""
        return self.rows if self.span is None else self.span

    @property
    def is_view(self) -> bool:
        """Whether `read` copies nothing."""
        return self.aligned and self.span is not None

    def read(self, buffer: Float[Tensor, "S H C D"]) -> Float[Tensor, "n H W D"]:
        """The block; a view of the buffer where `is_view`."""
        if not self.aligned:
            return buffer.flatten(0, 2).index_select(0, self.lines.flatten()).view(*self.lines.shape, -1)
        return buffer[self.index, :, self.first : self.first + self.size]

    def write(self, buffer: Float[Tensor, "S H C D"], kept: Float[Tensor, "n H K D"]) -> None:
        """Put what stays at the front."""
        count = kept.shape[2]
        if not self.aligned:
            buffer.flatten(0, 2).index_copy_(0, self.lines[:, :, :count].flatten(), kept.flatten(0, 2))
        else:
            # What stays may be a view of where it goes.
            buffer[self.index, :, self.first : self.first + count] = kept.clone() if self.is_view else kept
