"""KeyDiff (Park et al., arXiv 2504.15364): keys that are unlike the others stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.options import at_least
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView


@dataclass(frozen=True, kw_only=True)
class KeyDiffEviction(ScoredEviction):
    """The score is the negative cosine of a key and the anchor, which is the mean of all keys at length one.

    Code: `keydiff_press.py` of kvpress (the paper applies it block by block, as evictions here are). Keys are compared
    as they are cached, after the rotary embedding. Deviation: the anchor is that of the resident thoughts. The prompt,
    which never leaves, is no part of it.

    Attributes:
        max_protected: most of the newest thoughts that stay whatever their scores are.
    """

    name: ClassVar[str] = "keydiff"
    summary: ClassVar[str] = "keys that point elsewhere than their mean (KeyDiff)"
    max_protected: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "max_protected")

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """Minus the cosine."""
        keys = view.keys.to(torch.promote_types(view.keys.dtype, torch.float32))
        anchor = normalize(keys, dim=-1).mean(dim=2, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The same, key by key."""
        directions = [key.double() / max(float(key.double().norm()), 1e-12) for key in head.keys]
        anchor = sum(directions, torch.zeros_like(directions[0])) / len(directions)
        length = max(float(anchor.norm()), 1e-12)
        return [-float(direction @ anchor) / length for direction in directions]
