"""Uniformly random eviction, drawn per layer and kv head or once for all: the control for policies that score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView
from thoughtcache.cache.host_integers import from_host


@dataclass(frozen=True, kw_only=True)
class RandomEviction(ScoredEviction):
    """Random thoughts leave, others at every eviction; `(seed, event, layer)` decides, and seeds share their draws.

    Scores are uniform numbers per kv head, as in kvpress' `random_press.py` and takuma104/Random-Attention; the prompt
    stays, as there. Deviations: numbers are drawn anew at every eviction, so that a thought that is still there has
    been lucky every time; none are protected.

    Attributes:
        shared: one draw for all layers and kv heads, so that the same thoughts leave everywhere.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "thoughts by chance: the control"
    shared: bool = False

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """Uniform numbers, drawn on the host."""
        _, heads, resident, _ = view.keys.shape
        drawn = {
            event: self._draw(event, view.layer_index, heads, resident, view.first_head) for event in set(view.events)
        }
        return from_host(torch.stack([drawn[event] for event in view.events]), view.keys.device)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The numbers of one kv head."""
        drawn = self._draw(head.event, head.layer_index, len(head.heads), len(head.keys), head.first_head)
        return drawn[head.index].tolist()

    def _draw(
        self, event: tuple[int, int], layer_index: int, heads: int, resident: int, first_head: int
    ) -> Float[Tensor, "H W"]:
        seed, number = event
        layer = 0 if self.shared else layer_index + 1009 * first_head
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number * 10_007 + layer) % 2**63)
        drawn = torch.rand(1 if self.shared else heads, resident, generator=generator)
        return drawn.expand(heads, -1)
