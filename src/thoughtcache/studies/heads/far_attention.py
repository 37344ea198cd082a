"""How much every head attends to thoughts that a window would have dropped, on a user's texts: scores of heads.

Ours. HeadKV's scores are measured with questions whose answer stands at a known place, and say how much a head's
attention on it helps to retrieve and to reason; these need no such questions, and say only where heads look. Whether
budgets by these scores keep more of what a model needs than even ones is measured with `thoughtcache perplexity`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from thoughtcache.records import CacheSettings
from thoughtcache.studies.heads.scores import Weights, head_scores
from thoughtcache.studies.passes import Text


def probe_far_attention(
    model: PeftModel,
    texts: Sequence[Text],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """The share of its attention that every kv head gives to thoughts further back than the window.

    The model runs with its full cache. It is the mean over the thoughts behind the first W, over texts, and over the
    query heads of a kv head; what is given to the prompt, which never leaves, is no part of it.

    Args:
        model: the adapted model, whose window counts.
        texts: pairs of a prompt and thoughts, as token ids; all thoughts equally long.
        batch_size: texts that are run at once.
        progress: called with the number of texts that were looked at.

    Returns:
        Numbers between 0 and 1, one list per layer with one per kv head: scores for `headkv_budgets`.

    Raises:
        ValueError: for a window that is no integer, thoughts that differ in length or that stay in the window.
    """
    return head_scores(model, texts, _far, batch_size=batch_size, progress=progress)


def _far(weights: Weights, cache: CacheSettings) -> Float[Tensor, " H"]:
    """What goes to thoughts that are W or more tokens back."""
    assert cache.window is not None
    far = weights.thought & (weights.age >= cache.window) & weights.behind[:, None]
    return weights.of_queries.masked_fill(~far, 0.0).sum(dim=(0, 3, 4)).double().mean(dim=1)
