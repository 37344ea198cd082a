"""What budgets by kv head make of an eviction of one layer: where its columns are, which of them leave, what they were.

`budgets/heads.py` has the layout in integers. Axes: B rows, H kv heads, W columns of thoughts, E that leave, D.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor
from torch.nn.functional import pad

from thoughtcache.cache.budgets.heads import HeadColumns


def leaving_columns(
    columns: HeadColumns, event: int, slots: Int[Tensor, "B H E"] | None, num_columns: int, like: Tensor
) -> Int[Tensor, "B H E"]:
    """The columns that leave, E in every head: those of thoughts in full heads, and the first blank ones in others.

    A layer in which a head is not full has E new blank columns, which are zeros (`with_blank_columns`).

    Args:
        columns: the heads of the layer.
        event: the event.
        slots: thoughts that leave, ascending and counted from the oldest that the head holds; whatever in heads that
            are not full. None means the oldest.
        num_columns: columns of thoughts of every head, blank ones included.
        like: [B, ...] on the device of the cache.
    """
    oldest = torch.arange(columns.num_evicted, device=like.device).expand(like.shape[0], len(columns.sizes), -1)
    starts = torch.tensor([num_columns - size for size in columns.sizes], device=like.device)
    chosen = oldest if slots is None else slots.long()
    return torch.where(due_heads(columns, event, like.device), chosen + starts[:, None], oldest)


def with_blank_columns(columns: HeadColumns, event: int, thoughts: Num[Tensor, "B H W D"]) -> Num[Tensor, "B H _ D"]:
    """The thoughts of a layer with E blank columns of zeros in front, where it keeps as many columns as it has."""
    return thoughts if columns.sheds(event) else pad(thoughts, (0, 0, columns.num_evicted, 0))


def due_heads(columns: HeadColumns, event: int, device: torch.device) -> Bool[Tensor, "H 1"]:
    """Which heads evict."""
    return torch.tensor(columns.due(event), device=device)[:, None]


def hidden_columns(
    blank: Int[Tensor, "B H"], first: Int[Tensor, " B"], num_columns: int, num_query_heads: int
) -> Bool[Tensor, "B Q 1 C"]:
    """The blank columns of every query head.

    Args:
        blank: how many every kv head has.
        first: first column behind the prompt.
        num_columns: all columns.
        num_query_heads: Q.
    """
    places = torch.arange(num_columns, device=blank.device)
    start, stop = first[:, None, None], (first[:, None] + blank)[..., None]
    hidden = (places >= start) & (places < stop)
    batch, heads = blank.shape
    return hidden[:, :, None].expand(-1, -1, num_query_heads // heads, -1).reshape(batch, num_query_heads, 1, -1)
