"""How much of the attention goes to the window, for a memory that competes with it: what any kernel can tell.

A key of zeros, whose score is zero for every query, stands before the others. What its weight is, and what the others'
weights are together, comes out of two more columns of the values: with keys k_j and scores s_j,

    1 / (1 + sum_j e^(s_j)),    sum_j e^(s_j) / (1 + sum_j e^(s_j)).

Both are exact where the other one is nearly one. Keys, values and queries grow by eight columns, for kernels that want
sizes of eight, and one size for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

EXTRA = 8
"""Columns that are added."""
Attention = Callable[..., tuple[Tensor, Tensor | None]]


def attention_with_share(
    run: Attention,
    module: nn.Module,
    query: Float[Tensor, "B Q T D"],
    key: Float[Tensor, "B H m D"],
    value: Float[Tensor, "B H m D"],
    mask: Any,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T Q D"], Float[Tensor, "B T Q 2"], Tensor | None]:
    """Attention with a further key of score zero.

    Args:
        run: the attention function of the model.
        module: the attention layer.
        query: queries.
        key: keys.
        value: values.
        mask: a tensor [B, 1, T, m] or [B, m], or None.
        kwargs: what else the function takes; `scaling` is among it, since sizes say nothing now.

    Returns:
        The output, in which the further key has a value of zero; the shares of that key and of all others; and the
        weights, if the function gives them, the further key's first.

    Raises:
        ValueError: for a mask of another kind.
    """
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(
            f"memory_read='joint' cannot add a key to a mask of type {type(mask).__name__}; load the model with "
            "attn_implementation='sdpa' or 'eager', or use memory_read='balanced'"
        )
    size = value.shape[-1]
    values = pad(value, (0, EXTRA, 1, 0))
    values[:, :, 0, size] = 1.0
    values[:, :, 1:, size + 1] = 1.0
    # A mask of numbers is added to the scores, one of another type says what may be seen.
    columns = None if mask is None else pad(mask, (1, 0), value=0 if mask.is_floating_point() else 1)
    output, weights = run(module, pad(query, (0, EXTRA)), pad(key, (0, EXTRA, 1, 0)), values, columns, **kwargs)
    return output[..., :size], output[..., size : size + 2], weights
