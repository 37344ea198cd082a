"""Keys and values of every token of one sequence, copied out of its slot before they can leave it.

The learner enters its segments from this record instead of a forward pass of its own (`policy/reverse.py`). New tokens
always stand at the end of a slot, so one copy before each eviction, and one at the end, catches all. On CUDA a record
on the host is pinned and the copies do not block.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.slot_cache import SlotCache


class KVRecorder:
    """Grows to `[L, 2, H, columns, D]`, which is allocated once.

    Args:
        cache: where the keys and values are.
        columns: prompt plus the most thought tokens that will be processed.
        on_host: keep it on the host.
    """

    def __init__(self, cache: SlotCache, columns: int, *, on_host: bool) -> None:
        like = cache.layers[0].keys
        on_host = on_host and like.device.type != "cpu"
        self.num_recorded = 0
        self._log = torch.empty(
            (len(cache.layers), 2, like.shape[1], columns, like.shape[3]),
            dtype=like.dtype,
            device="cpu" if on_host else like.device,
            pin_memory=on_host,
        )

    def copy_new(self, cache: SlotCache, slot: int, num_processed: int) -> None:
        """Copy what came since the last call; `num_processed` counts all tokens of the sequence so far."""
        new, length = num_processed - self.num_recorded, cache.lengths[slot]
        target = self._log[..., self.num_recorded : num_processed, :]
        for index, layer in enumerate(cache.layers):
            for part, buffer in enumerate((layer.keys, layer.values)):
                target[index, part].copy_(buffer[slot, :, length - new : length], non_blocking=True)
        self.num_recorded = num_processed

    def finished(self) -> Float[Tensor, "L 2 H C D"]:
        """The record, trimmed to what was copied."""
        if self.num_recorded == self._log.shape[3]:
            return self._log
        return self._log[..., : self.num_recorded, :].clone()
