"""Attention masks by layer, for caches whose layers hold different numbers of tokens.

transformers makes one mask per forward pass, for the layer that holds most. `adapter/attention.py` lets each layer have
its own instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PretrainedConfig

from thoughtcache.cache.budgets import LayerBudgets
from thoughtcache.cache.head_columns import hidden_columns


class LayerMasks(ABC):
    """The masks of one forward pass."""

    @abstractmethod
    def of_layer(self, layer_index: int, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
        """The mask of one layer.

        Args:
            layer_index: the layer.
            mask: [..., C] for the columns of the layer that holds most; None where nothing is hidden.
            query: [B, Q, T, D] of the layer.
            key: [B, H, m, D] of all columns that this layer holds, new ones included.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class WithoutOldest(LayerMasks):
    """Layers hold [prompt | thoughts | new tokens], and whoever sees one resident thought sees all of them.

    A layer with fewer thoughts than the one with most then needs that one's mask without as many columns of thoughts.
    Heads with fewer thoughts than their layer has columns do not see the blank ones behind the prompt.

    Attributes:
        num_prompt_columns: columns in front of the thoughts.
        blank: blank columns of every kv head of every layer; None where there are none.
    """

    num_prompt_columns: int
    blank: Sequence[tuple[int, ...]] | None = None

    def of_layer(self, layer_index: int, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
        """The mask without the columns of thoughts that the layer does not hold.

        Raises:
            ValueError: if the attention of the model has masks that are no tensors.
        """
        start = self.num_prompt_columns
        if mask is not None and not isinstance(mask, Tensor):
            raise ValueError(
                f"budgets that differ by layer or head need masks that are tensors, and this attention has a "
                f"{type(mask).__name__}; load the model with attn_implementation='sdpa', or use even budgets"
            )
        if mask is not None and mask.shape[-1] > key.shape[2]:
            missing = mask.shape[-1] - key.shape[2]
            mask = torch.cat([mask[..., :start], mask[..., start + missing :]], dim=-1)
        if self.blank is None or not any(self.blank[layer_index]):
            return mask
        blank, first = (torch.tensor([one], device=key.device) for one in (self.blank[layer_index], start))
        hidden = hidden_columns(blank, first, key.shape[2], query.shape[1])
        if mask is None:
            new, columns = query.shape[2], key.shape[2]
            mask = torch.ones(new, columns, dtype=torch.bool, device=key.device).tril(columns - new)
        return hide(mask, hidden)


def check_masked_attention(config: PretrainedConfig, budgets: LayerBudgets | None) -> LayerBudgets | None:
    """The budgets; refuses an attention function that takes no mask by head, where they differ by head.

    Raises:
        ValueError: if the model was loaded with such a one.
    """
    name = str(config._attn_implementation)
    if budgets is not None and budgets.heads is not None and ("flash" in name or "flex" in name):
        raise ValueError(
            f"budgets that differ by head need a mask by head, which attn_implementation={name!r} does not take; load "
            "the model with attn_implementation='sdpa', or use budgets by layer"
        )
    return budgets


def added_to_scores(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask that says what is seen, as numbers that are added to scores, which eager attention takes alone."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def hide(mask: Tensor, hidden: Bool[Tensor, "B Q #T C"]) -> Tensor:
    """A mask [..., T, C] that hides further columns, of numbers that are added to scores or of what may be seen."""
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenMasks(LayerMasks):
    """Masks that a cache has made itself.

    Attributes:
        masks: one per layer; None where nothing is hidden.
    """

    masks: list[Tensor | None]

    def of_layer(self, layer_index: int, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
        """The mask that was made for the layer, whatever transformers has made."""
        return self.masks[layer_index]
