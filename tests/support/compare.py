"""The one comparison of numbers, with the only table of tolerances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

import thoughtcache as tc

TOLERANCE = {
    # 1e-16 per operation; two layers and up to 20 evictions with normalised states stay below 1e-13.
    torch.float64: 1e-12,
    # 6e-8 per operation; with recorded states nothing accumulates over evictions, what remains is one forward.
    torch.float32: 1e-5,
    # 4e-3 per operation in the base model; states and softmax are fp32.
    torch.bfloat16: 6e-2,
}
"""Largest absolute difference of log-probabilities or states of order one, by dtype of the base model."""

GRADIENT_TOLERANCE = 1e-9
"""Relative norm of the difference of two gradients of one parameter, fp64. Parameters whose gradient is smaller than
`NEGLIGIBLE` times the largest one are measured against that floor: theirs is the rounding of larger terms."""
NEGLIGIBLE = 1e-4


def max_difference(actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """Largest absolute difference; infinite where a shape or the finiteness differs."""
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        if actual.shape != expected.shape or not (actual.isfinite().all() and expected.isfinite().all()):
            return float("inf")
        return (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0
    assert len(actual) == len(expected)
    return max((max_difference(a, e) for a, e in zip(actual, expected, strict=True)), default=0.0)


def assert_close(
    actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor], dtype: torch.dtype = torch.float64
) -> None:
    """Equal to the rounding of `dtype`."""
    difference = max_difference(actual, expected)
    assert difference < TOLERANCE[dtype], f"largest difference {difference:.3e}, allowed {TOLERANCE[dtype]:.0e}"


def padded(rollouts: Sequence[tc.Rollout]) -> Tensor:
    """[B, T] recorded log-probabilities, right-padded with zeros."""
    return nn.utils.rnn.pad_sequence([rollout.logprobs for rollout in rollouts], batch_first=True)


def weighted_loss(out: tc.TokenLogProbs) -> Tensor:
    """A loss with another weight on every token, so that no two errors cancel; masked tokens weigh as well."""
    weights = torch.linspace(-1.0, 1.7, out.logprobs.numel(), dtype=out.logprobs.dtype).view_as(out.logprobs)
    return (weights * out.logprobs).sum()


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Gradient of every trainable parameter; zeros where the loss does not reach it. Frozen ones must have none."""
    model.zero_grad(set_to_none=True)
    loss().backward()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not frozen, f"frozen parameters received gradients: {frozen}"
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    model.zero_grad(set_to_none=True)
    return found


def gradient_error(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest relative norm of a difference, over parameters."""
    assert actual.keys() == expected.keys()
    largest = max(value.norm().item() for value in expected.values())
    assert largest > 0, "all gradients are zero: nothing was compared"
    return max(
        (actual[name] - expected[name]).norm().item() / max(expected[name].norm().item(), NEGLIGIBLE * largest)
        for name in expected
    )


def assert_gradients_match(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal to rounding in fp64, parameter by parameter."""
    error = gradient_error(actual, expected)
    assert error < GRADIENT_TOLERANCE, f"relative gradient error {error:.3e}, allowed {GRADIENT_TOLERANCE:.0e}"
