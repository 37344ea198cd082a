"""Attention masks by layer, for caches whose layers hold different numbers of tokens.

transformers makes one mask per forward pass, for the layer that holds most. `adapter/attention.py` lets each layer have
its own instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class LayerMasks(ABC):
    """The masks of one forward pass."""

    @abstractmethod
    def of_layer(self, layer_index: int, mask: Tensor | None, num_columns: int) -> Tensor | None:
        """The mask of one layer.

        Args:
            layer_index: the layer.
            mask: [..., C] for the columns of the layer that holds most; None where nothing is hidden.
            num_columns: columns that this layer holds, new ones included.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class WithoutOldest(LayerMasks):
    """Layers hold [prompt | thoughts | new tokens], and whoever sees one resident thought sees all of them.

    A layer with fewer thoughts than the one with most then needs that one's mask without as many columns of thoughts.

    Attributes:
        num_prompt_columns: columns in front of the thoughts.
    """

    num_prompt_columns: int

    def of_layer(self, layer_index: int, mask: Tensor | None, num_columns: int) -> Tensor | None:
        """The mask without the columns of thoughts that the layer does not hold.

        Raises:
            ValueError: if the attention of the model has masks that are no tensors.
        """
        if mask is None:
            return None
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"budgets that differ by layer need masks that are tensors, and this attention has a "
                f"{type(mask).__name__}; load the model with attn_implementation='sdpa', or use even budgets"
            )
        start, missing = self.num_prompt_columns, mask.shape[-1] - num_columns
        return mask if not missing else torch.cat([mask[..., :start], mask[..., start + missing :]], dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenMasks(LayerMasks):
    """Masks that a cache has made itself.

    Attributes:
        masks: one per layer; None where nothing is hidden.
    """

    masks: list[Tensor | None]

    def of_layer(self, layer_index: int, mask: Tensor | None, num_columns: int) -> Tensor | None:
        """The mask that was made for the layer, whatever transformers has made."""
        return self.masks[layer_index]
