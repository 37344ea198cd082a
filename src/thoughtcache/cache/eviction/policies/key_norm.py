"""Key norm (Devoto et al., arXiv 2406.11430): keys of a small norm, which are attended to most, stay."""

from __future__ import annotations

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
class KeyNormEviction(ScoredEviction):
    """The score is the negative Euclidean norm of the key: the largest leave.

    Code: `knorm_press.py` of kvpress; the authors' is alessiodevoto/l2compress. Norms are taken in fp32, because most
    of them tie in bf16. A rotary embedding changes no norm, so absolute and rolling positions choose alike. Deviations:
    all layers are compressed, where the authors leave out some of the first; the prompt stays.

    Attributes:
        max_protected: most of the newest thoughts that stay whatever their scores are.
    """

    name: ClassVar[str] = "key-norm"
    summary: ClassVar[str] = "keys of a small norm (L2 norm, Devoto et al.)"
    max_protected: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "max_protected")

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """Minus the norm."""
        norms: Tensor = view.keys.to(torch.promote_types(view.keys.dtype, torch.float32)).norm(dim=-1)
        return -norms

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The same, number by number."""
        return [-(sum(float(x) ** 2 for x in key) ** 0.5) for key in head.keys]
