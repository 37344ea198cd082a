"""Feature maps `phi: R^D -> R^F` of the memory in attention space. To add one: subclass, list it in `FEATURE_MAPS`.

Axes: D head size, C columns of the learned matrix, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


class FeatureMap(ABC):
    """From what a head projects a key or a query to, to its features. Never instantiated."""

    name: ClassVar[str]
    columns_per_feature: ClassVar[float]
    is_positive: ClassVar[bool]
    """Whether features are never negative, so that sums of their products can be shares."""
    keeps_output: ClassVar[bool] = False
    """Whether what the backward pass of the map itself needs is its output."""
    fewest: ClassVar[int] = 1
    """Smallest F with which features depend on the key."""

    @classmethod
    def num_columns(cls, num_features: int) -> int:
        """C for F = `num_features`.

        Raises:
            ValueError: if the map cannot have so many features.
        """
        if num_features < cls.fewest:
            raise ValueError(
                f"memory_features={num_features} is too few for memory_feature_map={cls.name!r}, which would give "
                f"every key the same features; use at least {cls.fewest}"
            )
        columns = num_features * cls.columns_per_feature
        if columns != int(columns):
            raise ValueError(
                f"memory_features={num_features} is odd, and memory_feature_map={cls.name!r} makes two features of "
                "every projection; use an even number"
            )
        return int(columns)

    @staticmethod
    @abstractmethod
    def apply(projected: Float[Tensor, "*any C"]) -> Float[Tensor, "*any F"]:
        """Makes features of projected keys or queries."""

    @staticmethod
    @abstractmethod
    def naive(y: Tensor) -> Tensor:
        """Makes the same features of one vector [C], entry by entry."""

    @staticmethod
    def saved(num_features: int) -> int:
        """Numbers per vector that the backward pass of `apply` needs: what came out of its last non-linear step."""
        return num_features


class SoftmaxFeatures(FeatureMap):
    """`softmax([y; -y])`: features compete, so that what is written is found again (RAttention, arXiv 2506.15545)."""

    name: ClassVar[str] = "softmax"
    fewest: ClassVar[int] = 2
    columns_per_feature: ClassVar[float] = 0.5
    is_positive: ClassVar[bool] = True
    keeps_output: ClassVar[bool] = True

    @staticmethod
    def apply(projected: Tensor) -> Tensor:
        """Makes all features at once."""
        return torch.softmax(torch.cat([projected, -projected], dim=-1), dim=-1)

    @staticmethod
    def naive(y: Tensor) -> Tensor:
        """Makes the features one by one."""
        return torch.stack(_naive_softmax([*y, *-y]))


class HedgehogFeatures(FeatureMap):
    """`[softmax(y); softmax(-y)]`: both halves have a share of their own (Hedgehog, arXiv 2402.04347)."""

    name: ClassVar[str] = "hedgehog"
    fewest: ClassVar[int] = 4
    columns_per_feature: ClassVar[float] = 0.5
    is_positive: ClassVar[bool] = True

    @staticmethod
    def apply(projected: Tensor) -> Tensor:
        """Makes all features at once."""
        return torch.cat([torch.softmax(projected, dim=-1), torch.softmax(-projected, dim=-1)], dim=-1)

    @staticmethod
    def naive(y: Tensor) -> Tensor:
        """Makes the features one by one."""
        return torch.stack([*_naive_softmax([*y]), *_naive_softmax([*-y])])


class UnitFeatures(FeatureMap):
    """`y / |y|`: linear attention on learned directions; features may be negative."""

    name: ClassVar[str] = "unit"
    columns_per_feature: ClassVar[float] = 1.0
    is_positive: ClassVar[bool] = False

    @staticmethod
    def apply(projected: Tensor) -> Tensor:
        """Makes all features at once."""
        return unit(projected)

    @staticmethod
    def naive(y: Tensor) -> Tensor:
        """Makes the features one by one."""
        length = sum((entry * entry for entry in y), start=y.new_tensor(TINY)).sqrt()
        return torch.stack([entry / length for entry in y])

    @staticmethod
    def saved(num_features: int) -> int:
        """The projection, and the inverse of its length."""
        return num_features + 1


def _naive_softmax(y: list[Tensor]) -> list[Tensor]:
    """The share of each entry."""
    exponentials = [(entry - max(y)).exp() for entry in y]
    total = sum(exponentials[1:], start=exponentials[0])
    return [one / total for one in exponentials]


TINY = 1e-12
"""Added to squared lengths."""


def unit(vectors: Float[Tensor, "*any F"]) -> Float[Tensor, "*any F"]:
    """Unit Euclidean length along the last axis; the zero vector stays zero."""
    return vectors * torch.rsqrt(vectors.square().sum(dim=-1, keepdim=True) + TINY)


FEATURE_MAPS: dict[str, type[FeatureMap]] = {one.name: one for one in (SoftmaxFeatures, HedgehogFeatures, UnitFeatures)}
