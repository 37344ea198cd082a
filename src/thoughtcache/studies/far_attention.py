"""How much every head attends to thoughts that a window would have dropped, on a user's texts: scores of heads.

Ours. HeadKV's scores are measured with questions whose answer stands at a known place, and say how much a head's
attention on it helps to retrieve and to reason; these need no such questions, and say only where heads look. Whether
budgets by these scores keep more of what a model needs than even ones is measured with `thoughtcache perplexity`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import Rollout
from thoughtcache.studies.passes import Piece, Text, pieces_of_texts, texts_under


@torch.no_grad()
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
    tuner = find_tuner(model)
    cache = tuner.thought_config.resolve_window(None)
    rollouts = texts_under(texts, cache)
    assert cache.window is not None
    processed = len(texts[0][1]) - 1  # the last thought is read by nobody
    if processed <= cache.window:
        raise ValueError(
            f"of {len(texts[0][1])} thoughts all that are read stay in a window of {cache.window}, so that none is "
            "far; give longer texts, or a smaller window"
        )
    scaling = float(tuner.backbone.layers[0].self_attn.scaling)  # type: ignore[index,union-attr]
    shape = tuner.num_layers, tuner.kv_shape[0]
    total = torch.zeros(shape, dtype=torch.float64)
    for begin in range(0, len(rollouts), batch_size):
        some = rollouts[begin : begin + batch_size]
        total += _far_sums(model, some, cache.window, scaling)
        if progress is not None:
            progress(len(some))
    found: list[list[float]] = (total / (len(rollouts) * (processed - cache.window))).tolist()
    return found


def _far_sums(model: PeftModel, texts: Sequence[Rollout], window: int, scaling: float) -> Float[Tensor, "L H"]:
    """Far attention of every kv head, summed over texts and queries behind the window."""
    total = None
    for piece in pieces_of_texts(model, texts, full_cache=True):
        assert piece.leaving.past is not None
        found = torch.stack([_far_of_layer(piece, layer, window, scaling) for layer in range(len(piece.queries))])
        total = found if total is None else total + found
    assert total is not None
    return total.cpu()


def _far_of_layer(piece: Piece, layer: int, window: int, scaling: float) -> Float[Tensor, " H"]:
    """The same for one layer and piece."""
    past, prompts = piece.leaving.past, piece.batch.prompts
    assert past is not None
    queries, keys, width = piece.queries[layer], past[layer][0], prompts.ids.shape[1]
    batch, _, count, size = queries.shape
    dtype = torch.promote_types(keys.dtype, torch.float32)
    grouped = queries.to(dtype).reshape(batch, keys.shape[1], -1, count, size)
    columns = torch.arange(keys.shape[2], device=keys.device)
    own = columns[-count:, None]
    exists = columns >= (width - prompts.lengths)[:, None]
    seen = (columns <= own) & exists[:, None, None, None]
    weights = (grouped @ keys.to(dtype).unsqueeze(2).mT * scaling).masked_fill(~seen, float("-inf")).softmax(dim=-1)
    far = (columns >= width) & (columns <= own - window) & (own >= width + window)
    # Queries of padding see nothing, and are not behind the window.
    return weights.masked_fill(~far, 0.0).sum(dim=(0, 3, 4)).double().mean(dim=1)
