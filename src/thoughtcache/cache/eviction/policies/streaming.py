"""StreamingLLM (Xiao et al., arXiv 2309.17453): the first tokens, which are sinks of attention, and the newest stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.options import at_least
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView


@dataclass(frozen=True, kw_only=True)
class StreamingEviction(ScoredEviction):
    """The first thoughts stay for ever; of the others the oldest leave, the same ones in every layer and head.

    Official code: mit-han-lab/streaming-llm, `streaming_llm/kv_cache.py` (`start_size` 4, `recent_size` 512, the demo
    2000). There the first tokens of the text stay, which are the sinks of attention, and positions are places in the
    cache: that is `positions="rolling"` here. **The prompt never leaves in this package**, so the sinks of a text are
    safe under every policy, and `sliding` already is StreamingLLM with the whole prompt as its sinks. What this policy
    adds are the first thoughts, at most half of what stays; with `sinks=0` it chooses as `sliding` does.

    Attributes:
        sinks: thoughts from the beginning that never leave.
    """

    name: ClassVar[str] = "streaming"
    summary: ClassVar[str] = "the first thoughts and the newest (StreamingLLM)"
    sinks: int = 4

    def __post_init__(self) -> None:
        at_least(self, 0, "sinks")

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """The age of a thought; sinks stand above all."""
        rows, heads, resident, _ = view.keys.shape
        slots = torch.arange(resident, dtype=torch.float32, device=view.keys.device)
        sinks = min(self.sinks, (resident - view.num_evicted) // 2)
        return torch.where(slots < sinks, math.inf, slots).expand(rows, heads, -1)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The same, slot by slot."""
        sinks = min(self.sinks, (len(head.keys) - head.num_evicted) // 2)
        return [math.inf if slot < sinks else float(slot) for slot in range(len(head.keys))]
