"""Scores of kv heads from a model's own attention over its full cache, on a user's texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor

from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings
from thoughtcache.studies.passes import Piece, Text, pieces_of_texts, texts_under


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Attention of one layer over one piece of all texts.

    Axes: B texts, H kv heads, G query heads of a kv head, n queries, C columns of [prompt | thoughts].

    Attributes:
        of_queries: attention weights in fp32 or more, 0 on what a query does not see.
        thought: which columns are thoughts.
        age: how many tokens further back a column is than a query; below 0 it is not seen.
        behind: which queries stand behind the first W thoughts.
    """

    of_queries: Float[Tensor, "B H G n C"]
    thought: Bool[Tensor, " C"]
    age: Int[Tensor, "n C"]
    behind: Bool[Tensor, " n"]


Measure = Callable[[Weights, CacheSettings], Float[Tensor, " H"]]
"""A number for every kv head, summed over texts and over the queries behind the window."""


@torch.no_grad()
def head_scores(
    model: PeftModel,
    texts: Sequence[Text],
    measure: Measure,
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """The mean of a measure over texts and over queries behind the first W thoughts, with the full cache.

    Args:
        model: the adapted model, whose window counts.
        texts: pairs of a prompt and thoughts, as token ids; all thoughts equally long.
        measure: what is asked of the weights of a layer.
        batch_size: texts that are run at once.
        progress: called with the number of texts that were looked at.

    Returns:
        One list per layer with a number per kv head.

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
    total = torch.zeros(tuner.num_layers, tuner.kv_shape[0], dtype=torch.float64)
    for begin in range(0, len(rollouts), batch_size):
        some = rollouts[begin : begin + batch_size]
        for piece in pieces_of_texts(model, some, full_cache=True):
            for layer in range(len(piece.queries)):
                total[layer] += measure(_weights(piece, layer, cache.window, scaling), cache).double().cpu()
        if progress is not None:
            progress(len(some))
    found: list[list[float]] = (total / (len(rollouts) * (processed - cache.window))).tolist()
    return found


def _weights(piece: Piece, layer: int, window: int, scaling: float) -> Weights:
    """The weights of one layer and piece, worked out from its queries and keys."""
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
    # Queries of padding see nothing; they are not behind the window.
    return Weights(of_queries=weights, thought=columns >= width, age=own - columns, behind=own[:, 0] >= width + window)
