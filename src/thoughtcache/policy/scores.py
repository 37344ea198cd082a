"""Turns hidden states into numbers per token, without a `[T, V]` tensor in the forward or the backward pass.

A *score function* turns the hidden states of some columns into tensors [rows, n]. The first of them carries a gradient,
the others are reports (entropies). `row_scores` runs it over chunks of rows: the forward pass keeps nothing but the
hidden states, however few the rows are (a graph over many chunks would add them up to `[T, V]`); the backward pass
forms each chunk of logits again. Where the values are known from an earlier pass, the forward pass costs nothing, so
that a recomputed segment multiplies with the vocabulary once, not twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.token_logprobs import token_logprobs

CHUNK_ELEMENTS = 2**23
"""Logits formed at once: 32 MiB in fp32."""
RowFunction = Callable[..., tuple[Tensor, ...]]


ScoreFunction = Callable[
    [Float[Tensor, "B n d"], int, int, tuple[Tensor, ...] | None], tuple[Float[Tensor, "B n *any"], ...]
]
"""(hidden states that predict thoughts start..stop, start, stop, known values or None) -> tensors [rows, n, ...]; only
the first one carries a gradient."""


def row_scores(
    function: RowFunction,
    head: nn.Module,
    hidden: Float[Tensor, "B n d"],
    *others: Tensor,
    known: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """`function` over rows of hidden states, in chunks of about `CHUNK_ELEMENTS / V` rows.

    Args:
        function: ([N, d] hidden rows, rows of `others`) -> tensors [N]; only the first one carries a gradient, which
            reaches the hidden rows and the trainable parameters of `head`.
        head: language-model head that `function` uses.
        hidden: hidden states.
        others: further tensors [B, n, ...] without gradient (targets, teacher states).
        known: the values, if an earlier pass has found them.

    Returns:
        Tensors [B, n].
    """
    flat = [tensor.flatten(0, 1) for tensor in (hidden, *others)]
    size = max(1, CHUNK_ELEMENTS // _vocabulary_size(head))
    if known is None and flat[0].shape[0] <= size and not torch.is_grad_enabled():
        found = function(*flat)
    else:
        parameters = [p for p in head.parameters() if p.requires_grad]
        found = _RowScores.apply(function, size, len(flat), known, *flat, *parameters)  # type: ignore[no-untyped-call]
    return tuple(column.view(hidden.shape[:2]) for column in found)


def token_scores(policy: PolicyHandle, token_ids: Int[Tensor, "B T"], temperature: float) -> ScoreFunction:
    """Log-probabilities and entropies of these thoughts, as a score function.

    Args:
        policy: the parts of the model.
        token_ids: the thoughts.
        temperature: temperature of the scored distribution.
    """

    def rows(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return token_logprobs(hidden, targets, policy.head, temperature)

    def score(hidden: Tensor, start: int, stop: int, known: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        targets = token_ids[: hidden.shape[0], start:stop]
        return row_scores(rows, policy.head, hidden, targets, known=known)

    return score


def _vocabulary_size(head: Any) -> int:
    """V of a language-model head; PEFT may have wrapped it, to train it or some of its rows."""
    linear = head.original_module if isinstance(head, AuxiliaryTrainingWrapper) else head
    return int(linear.out_features)


def running_autocast(device_type: str) -> dict[str, Any]:
    """Arguments of the autocast region that is open now, so that a later pass can run under the same."""
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
    }


class _RowScores(torch.autograd.Function):
    """Scores whose logits are formed again in the backward pass, chunk by chunk of rows."""

    @staticmethod
    def forward(
        ctx: Any, function: RowFunction, size: int, num_rows: int, known: tuple[Tensor, ...] | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        rows = tensors[:num_rows]
        ctx.function, ctx.size, ctx.num_rows = function, size, num_rows
        ctx.autocast = running_autocast(rows[0].device.type)
        ctx.save_for_backward(*tensors)
        if known is not None:
            outputs = tuple(value.flatten() for value in known)
        else:
            parts = [function(*chunk) for chunk in zip(*(torch.split(row, size) for row in rows), strict=True)]
            outputs = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *reports: Tensor) -> tuple[Tensor | None, ...]:
        rows, parameters = ctx.saved_tensors[: ctx.num_rows], ctx.saved_tensors[ctx.num_rows :]
        hidden_gradient = torch.empty_like(rows[0])
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        start = 0
        for part, *chunk in zip(*(torch.split(tensor, ctx.size) for tensor in (gradient, *rows)), strict=True):
            hidden = chunk[0].detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                score = ctx.function(hidden, *chunk[1:])[0]
            found = torch.autograd.grad(score, (hidden, *parameters), part, allow_unused=True)
            hidden_gradient[start : start + len(part)] = found[0]
            for total, value in zip(sums, found[1:], strict=True):
                if value is not None:
                    total.add_(value)
            start += len(part)
        return (None, None, None, None, hidden_gradient, *[None] * (len(rows) - 1), *sums)
