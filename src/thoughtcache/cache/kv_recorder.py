"""Keys and values of every token of a rollout, copied out of the bounded cache before they can leave it.

The learner enters its segments from this record instead of a forward pass of its own (`policy/reverse.py`). New tokens
always stand at the physical end of the cache, so one copy before each eviction, and one at the end, catches all. On
CUDA a record on the host is pinned and the copies do not block.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class KVRecorder:
    """Grows to `[B, L, 2, H, columns, D]`, which is allocated once, at the first copy.

    Args:
        columns: padded prompt plus the most thought tokens.
        on_host: keep it on the host.
    """

    def __init__(self, columns: int, *, on_host: bool) -> None:
        self.columns = columns
        self.on_host = on_host
        self.num_recorded = 0
        self._log: Tensor | None = None

    @property
    def log(self) -> Float[Tensor, "B L 2 H columns D"]:
        """The record; columns that were not reached hold nothing."""
        assert self._log is not None
        return self._log

    def copy_new(self, layers: list[Any]) -> None:
        """Copy what came since the last call from the cache's layers."""
        seen, length = layers[0].seen, layers[0].length
        new = seen - self.num_recorded
        if new == 0:
            return
        if self._log is None:
            self._log = self._empty(layers)
        target = self._log[..., self.num_recorded : seen, :]
        for index, layer in enumerate(layers):
            for part, buffer in enumerate((layer.keys, layer.values)):
                target[:, index, part].copy_(buffer[:, :, length - new : length], non_blocking=True)
        self.num_recorded = seen

    def _empty(self, layers: list[Any]) -> Tensor:
        batch, heads, _, size = layers[0].keys.shape
        like = layers[0].keys
        on_host = self.on_host and like.device.type != "cpu"
        return torch.empty(
            (batch, len(layers), 2, heads, self.columns, size),
            dtype=like.dtype,
            device="cpu" if on_host else like.device,
            pin_memory=on_host,
        )
