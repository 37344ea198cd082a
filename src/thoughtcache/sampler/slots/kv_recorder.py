"""Keys and values of every token of one sequence, copied out of its slot before they can leave it.

The learner enters its segments from this record instead of a forward pass of its own (`learner/reverse.py`). New tokens
always stand at the end of a slot, so one copy before each eviction, and one at the end, catches all. A sequence that
ends early takes no room for what it did not draw. On CUDA, what goes to the host is gathered on the device, into one
contiguous piece, and copied to pinned memory, so that the copies do not block; only the finished record waits for them.

On CUDA: benchmarks/gpu/profiled.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.sampler.slots.slot_cache import SlotCache


class KVRecorder:
    """Records the keys and values of one sequence, in pieces `[L, 2, H, n, D]`.

    Args:
        device: device of the slots.
        on_host: keep them on the host.
    """

    def __init__(self, device: torch.device, *, on_host: bool) -> None:
        self.device = device
        self.leaves = on_host and device.type == "cuda"
        self.num_recorded = 0
        self._pieces: list[Tensor] = []

    def copy_new(self, cache: SlotCache, slot: int, num_processed: int) -> None:
        """Copy what came since the last call; `num_processed` counts all tokens of the sequence so far."""
        count, pairs = num_processed - self.num_recorded, []
        for layer in cache.layers:
            stop = int(cache.columns.lengths[slot, layer.group])
            new = slice(stop - count, stop)
            pairs.append(torch.stack((layer.keys[slot, :, new], layer.values[slot, :, new])))
        piece = torch.stack(pairs)
        if self.leaves:
            host = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)
            piece = host.copy_(piece, non_blocking=True)
        self._pieces.append(piece)
        self.num_recorded = num_processed

    def finished(self, num_columns: int) -> Float[Tensor, "L 2 H C D"]:
        """The first `num_columns` columns in one piece; the recorder is empty afterwards."""
        pieces, self._pieces = self._pieces, []
        if self.leaves:
            # The host is about to read what the device was asked to write.
            torch.cuda.current_stream(self.device).synchronize()
        return torch.cat(pieces, dim=3)[..., :num_columns, :].contiguous()
