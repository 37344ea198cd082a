"""Expected attention (Devoto et al., arXiv 2510.00636): what queries to come will probably attend to stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.cache.eviction.naive_view import NaiveHead, softmax
from thoughtcache.cache.eviction.options import at_least
from thoughtcache.cache.eviction.scored import ScoredEviction
from thoughtcache.cache.eviction.view import EvictionView, shares
from thoughtcache.cache.rotation import KeyRotation, naive_turn, turn


@dataclass(frozen=True, kw_only=True)
class ExpectedAttentionEviction(ScoredEviction):
    """The attention that a Gaussian of the last queries is expected to give at positions to come, by the value's norm.

    Mean `mu` and covariance `Sigma` are those of the last queries, each turned to the position of the newest; `R` is
    the mean rotation over the next `future` positions. `z_j = s R mu . k_j + s^2/2 k_j^T R Sigma R^T k_j`, with the
    scale `s` of attention, is the logarithm of the expected exponential. Softmax over all tokens, mean over a group's
    query heads, times `|v_j|`.

    Code: `expected_attention_press.py` of kvpress (512 positions; while decoding, `decoding_press.py`, statistics of
    the last 256 tokens; epsilon 0). As there the softmax runs over the prompt too, whose tokens never leave here; 4
    sinks, which it leaves out, are the prompt's. Deviations: statistics are of queries as attention has them, so that a
    norm of queries is covered; they are of thoughts alone; windows that keep fewer than 512 thoughts look at half as
    many queries as they keep. Needs fixed rotary frequencies.

    Attributes:
        max_queries: most of the last queries that are looked at.
        max_protected: most of the newest thoughts that stay whatever their scores are.
        future: positions that queries to come may stand at.
    """

    name: ClassVar[str] = "expected-attention"
    summary: ClassVar[str] = "what queries to come should attend to"
    turns_queries: ClassVar[bool] = True
    max_queries: int = 256
    max_protected: int = 0
    future: int = 512

    def __post_init__(self) -> None:
        at_least(self, 1, "max_queries", "future")
        at_least(self, 0, "max_protected")

    def score(self, view: EvictionView) -> Float[Tensor, "B H W"]:
        """The products of keys and centred queries give the covariance's part without its matrix."""
        attended = view.attended
        assert attended is not None
        rows, heads, _, size = attended.keys.shape
        queries = self._turned(attended.queries.to(attended.dtype), view.rotation)
        present = attended.present[:, None, :, None]
        count = present.sum(dim=2, keepdim=True)
        mean = (queries * present).sum(dim=2, keepdim=True) / count
        centred = (queries - mean) * present
        keys = attended.keys.to(attended.dtype).unsqueeze(2).mT * attended.scaling  # [B, H, 1, D, C]
        expected = mean.reshape(rows, heads, -1, 1, size) @ keys
        spread = (centred.reshape(rows, heads, -1, queries.shape[2], size) @ keys).square()
        logits = expected + spread.sum(dim=3, keepdim=True) / (2 * count.unsqueeze(2))
        weights = attended.of_thoughts(shares(logits, attended.visible[:, None, None, -1:]))
        norms: Tensor = view.values.to(attended.dtype).norm(dim=-1)
        return weights.mean(dim=(2, 3)) * norms

    def _turned(self, queries: Float[Tensor, "B Q n D"], rotation: KeyRotation | None) -> Float[Tensor, "B Q n D"]:
        """Queries at the position of the newest, under the mean rotation from there on."""
        if rotation is None:
            return queries
        behind = torch.arange(queries.shape[2] - 1, -1, -1, device=queries.device)
        ahead = torch.arange(1, self.future + 1, device=queries.device)
        cos, sin = rotation.turning(ahead[None, None], queries)
        return turn(rotation.shift(queries, behind[None, None]), (cos.mean(dim=(0, 1, 2)), sin.mean(dim=(0, 1, 2))))

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The same, query head by query head, with the covariance's matrix."""
        count, group = len(head.queries), len(head.queries[0])
        scores = [0.0] * len(head.keys)
        for member in range(group):
            queries = [self._naive_turned(q[member].double(), count - 1 - i, head) for i, q in enumerate(head.queries)]
            mean = sum(queries, torch.zeros_like(queries[0])) / count
            covariance = torch.stack([torch.outer(q - mean, q - mean) for q in queries]).sum(dim=0) / count
            logits = []
            for key in (key.double() for key in head.prompt + head.keys):
                logits.append(head.product(mean, key) + head.scaling**2 * float(key @ covariance @ key) / 2)
            for slot, weight in enumerate(softmax(logits)[len(head.prompt) :]):
                scores[slot] += weight / group
        return [score * float(value.double().norm()) for score, value in zip(scores, head.values, strict=True)]

    def _naive_turned(self, query: Tensor, behind: int, head: NaiveHead) -> Tensor:
        """R q: pairs of entries as complex numbers, times the mean of e^(i angle steps) over the steps to come."""
        if head.frequencies is None:
            return query
        angle = head.frequencies.double()
        now = naive_turn(query, behind, head.frequencies)
        x, y, rest = now[: len(angle)], now[len(angle) : 2 * len(angle)], now[2 * len(angle) :]
        steps = torch.arange(1, self.future + 1, device=angle.device).double()
        angles = torch.outer(steps, angle)
        z = torch.complex(x, y) * torch.polar(torch.ones_like(angles), angles).mean(dim=0)
        return torch.cat([z.real, z.imag, rest])
