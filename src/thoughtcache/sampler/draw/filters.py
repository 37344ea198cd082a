"""Filters between the scored distribution and the one that tokens are drawn from: pure functions of logits.

They mean what transformers means by the same names; tests/unit/test_filters.py compares with its classes. Axes: B rows,
V vocabulary. Nothing here waits for the device.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from thoughtcache.records import TokenFilters

NEVER = float("-inf")


def filtered_log_softmax(
    logits: Float[Tensor, "B V"],
    filters: TokenFilters,
    temperature: float,
    *,
    seen: Bool[Tensor, "B V"] | None,
    barred: Bool[Tensor, "B V"] | None,
) -> Float[Tensor, "B V"]:
    """Log-probabilities of the distribution that is drawn from; -inf for tokens that cannot be drawn.

    Args:
        logits: logits in at least fp32, not divided by the temperature.
        filters: filters to apply.
        temperature: positive.
        seen: tokens of the prompt and of the thoughts so far; read if there is a repetition penalty.
        barred: tokens that must not come now, or None.
    """
    if seen is not None:
        logits = penalise(logits, seen, filters.repetition_penalty)
    if barred is not None:
        logits = logits.masked_fill(barred, NEVER)
    logits = logits / temperature
    if filters.top_k > 0:
        logits = keep_top_k(logits, filters.top_k)
    if filters.top_p < 1.0:
        logits = keep_top_p(logits, filters.top_p)
    if filters.min_p > 0.0:
        logits = keep_min_p(logits, filters.min_p)
    return logits.log_softmax(dim=-1)


def penalise(logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], penalty: float) -> Float[Tensor, "B V"]:
    """Divide positive and multiply negative logits of the tokens that were seen, once each."""
    return logits.where(~seen, (logits * penalty).where(logits < 0, logits / penalty))


def keep_top_k(logits: Float[Tensor, "B V"], top_k: int) -> Float[Tensor, "B V"]:
    """Keep the `top_k` largest logits and what equals the last of them."""
    smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, NEVER)


def keep_top_p(logits: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Drop the least likely tokens that hold at most `1 - top_p` together; the most likely one stays."""
    ascending, order = logits.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
    dropped[:, -1] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), NEVER)


def keep_min_p(logits: Float[Tensor, "B V"], min_p: float) -> Float[Tensor, "B V"]:
    """Keep tokens whose probability is at least `min_p` times that of the most likely one."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < min_p * probabilities.amax(dim=-1, keepdim=True), NEVER)
