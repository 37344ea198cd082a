"""Uniformly random eviction, drawn per layer and kv head: the control for policies that score tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from thoughtcache.cache.eviction.policy import EvictionPolicy


class RandomEviction(EvictionPolicy):
    """Random thoughts leave, other ones in every layer and head (rows of a batch share the draw)."""

    name: ClassVar[str] = "random"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._generator = torch.Generator().manual_seed(seed)

    def select(self, layer_index: int, keys: Tensor, values: Tensor, num_evicted: int) -> Tensor:
        """[B, H, E] ascending slots, uniform without replacement."""
        batch, heads, resident, _ = keys.shape
        order = torch.rand(heads, resident, generator=self._generator).argsort(dim=-1)
        slots = order[:, :num_evicted].sort(dim=-1).values.to(keys.device)
        return slots.expand(batch, heads, num_evicted)
