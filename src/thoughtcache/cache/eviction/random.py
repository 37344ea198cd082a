"""Uniformly random eviction, drawn per layer and kv head: the control for policies that score tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.view import EvictionView
from thoughtcache.cache.host_integers import to_device


class RandomEviction(EvictionPolicy):
    """Random thoughts leave, other ones in every layer, head and eviction; sequences of one seed share their draws."""

    name: ClassVar[str] = "random"

    def select(self, view: EvictionView) -> Tensor:
        """[B, H, E] ascending slots, uniform without replacement; `(seed, event, layer)` decides."""
        _, heads, resident, _ = view.keys.shape
        drawn = {
            event: self._draw(*event, view.layer_index, heads, resident, view.num_evicted) for event in set(view.events)
        }
        return to_device(torch.stack([drawn[event] for event in view.events]).numpy(), view.keys.device)

    def _draw(self, seed: int, event: int, layer_index: int, heads: int, resident: int, num_evicted: int) -> Tensor:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + event * 10_007 + layer_index) % 2**63)
        order = torch.rand(heads, resident, generator=generator).argsort(dim=-1)
        return order[:, :num_evicted].sort(dim=-1).values
