"""Keys and values of every token of one sequence, copied out of its slot before they can leave it.

The learner enters its segments from this record instead of a forward pass of its own (`policy/reverse.py`). New tokens
always stand at the end of a slot, so one copy before each eviction, and one at the end, catches all. The record grows
in blocks, so that a sequence that ends early takes no room for what it did not draw. On CUDA a record on the host is
pinned and the copies do not block; only the finished record waits for them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.slot_cache import SlotCache

BLOCK_COLUMNS = 256
"""Columns that a record grows by, at least."""


class KVRecorder:
    """Grows to `[L, 2, H, columns, D]`; at most one block is partly empty.

    Args:
        columns: prompt plus the most thought tokens that will be processed.
        device: of the slots.
        on_host: keep it on the host.
    """

    def __init__(self, columns: int, device: torch.device, *, on_host: bool) -> None:
        self.columns = columns
        self.device = device
        self.pinned = on_host and device.type != "cpu"
        self.num_recorded = 0
        self._blocks: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        """Bytes that are allocated now."""
        return sum(block.nbytes for block in self._blocks)

    def copy_new(self, cache: SlotCache, slot: int, num_processed: int) -> None:
        """Copy what came since the last call; `num_processed` counts all tokens of the sequence so far."""
        allocated = sum(block.shape[3] for block in self._blocks)
        if num_processed > allocated:
            # What is missing, rounded up to a block, and never more than the sequence can need.
            size = min(max(num_processed - allocated, BLOCK_COLUMNS), self.columns - allocated)
            self._blocks.append(self._empty(cache.layers[0].keys, len(cache.layers), size))
        offset = int(cache.lengths[slot]) - num_processed
        start = 0
        for block in self._blocks:
            first, last = max(self.num_recorded, start), min(num_processed, start + block.shape[3])
            if first < last:
                _copy(cache, slot, first + offset, last + offset, block[..., first - start : last - start, :])
            start += block.shape[3]
        self.num_recorded = num_processed

    def finished(self, num_columns: int) -> Float[Tensor, "L 2 H C D"]:
        """The first `num_columns` columns in one piece; the recorder is empty afterwards."""
        blocks, self._blocks = self._blocks, []
        if self.pinned:
            # The host is about to read what the device was asked to write.
            torch.cuda.current_stream(self.device).synchronize()
        if len(blocks) == 1 and blocks[0].shape[3] == num_columns:
            return blocks[0]
        whole = self._empty(blocks[0][0, 0].unsqueeze(0), blocks[0].shape[0], num_columns)
        start = 0
        for block in blocks:
            stop = min(start + block.shape[3], num_columns)
            whole[..., start:stop, :].copy_(block[..., : stop - start, :])
            start = stop
        return whole

    def _empty(self, like: Float[Tensor, "B H n D"], num_layers: int, columns: int) -> Float[Tensor, "L 2 H C D"]:
        shape = (num_layers, 2, like.shape[1], columns, like.shape[3])
        device = torch.device("cpu") if self.pinned else self.device
        return torch.empty(shape, dtype=like.dtype, device=device, pin_memory=self.pinned)


def _copy(cache: SlotCache, slot: int, start: int, stop: int, target: Tensor) -> None:
    for index, layer in enumerate(cache.layers):
        for part, buffer in enumerate((layer.keys, layer.values)):
            target[index, part].copy_(buffer[slot, :, start:stop], non_blocking=True)
