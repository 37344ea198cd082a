"""How many of a layer's largest attention weights are of each head, on a user's texts: scores of heads for AdaKV.

AdaKV (Feng et al., arXiv 2407.11550) pools the weights of all heads of a layer and lets the largest stay, whatever head
they are of, each time that something leaves. Here the same count is a mean over texts and queries, made once, because
budgets are fixed before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from thoughtcache.records import CacheSettings
from thoughtcache.studies.heads.scores import Weights, head_scores
from thoughtcache.studies.passes import Text


def probe_pooled_attention(
    model: PeftModel,
    texts: Sequence[Text],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """The share of every kv head in the largest attention weights of its layer.

    The model runs with its full cache. For every thought behind the first W, the weights that it gives to thoughts,
    mean over the query heads of a kv head, are pooled over the H kv heads of a layer; of the (W - E) H largest, which
    would fill the cache of that layer behind an eviction, every head's are counted. Of equal weights either may count.

    Args:
        model: the adapted model, whose window W and number of thoughts that leave at once E count.
        texts: pairs of a prompt and thoughts, as token ids; all thoughts equally long.
        batch_size: texts that are run at once.
        progress: called with the number of texts that were looked at.

    Returns:
        Numbers between 0 and 1, one list per layer with one per kv head, of sum 1: scores for `adakv_budgets`.

    Raises:
        ValueError: for a window that is no integer, thoughts that differ in length or that stay in the window.
    """
    return head_scores(model, texts, _pooled, batch_size=batch_size, progress=progress)


def _pooled(weights: Weights, cache: CacheSettings) -> Float[Tensor, " H"]:
    """Shares of the heads in the largest weights, summed over texts and queries behind the window."""
    assert cache.window is not None
    assert cache.num_evicted is not None
    thoughts = weights.of_queries[:, :, :, weights.behind][..., weights.thought].mean(dim=2)
    batch, heads, count, columns = thoughts.shape
    if not count:
        return torch.zeros(heads, device=thoughts.device)
    unseen = weights.age[weights.behind][:, weights.thought] < 0
    pooled = thoughts.masked_fill(unseen, -1.0).transpose(1, 2).reshape(batch, count, heads * columns)
    largest = pooled.topk((cache.window - cache.num_evicted) * heads, dim=-1).indices // columns
    return torch.bincount(largest.flatten(), minlength=heads) / largest.shape[-1]
