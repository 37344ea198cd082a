"""The closed form of the chosen log-probabilities against autograd through the whole distribution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support.compare import assert_close
from thoughtcache.policy.token_logprobs import entropy_of, scaled_log_softmax, token_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_values_and_gradients_of_the_whole_distribution(shape: tuple[int, ...], temperature: float) -> None:
    torch.manual_seed(0)
    head = nn.Linear(4, 11, bias=True).double()
    hidden = torch.randn(*shape, 4, dtype=torch.float64) * 3
    targets = torch.randint(0, 11, shape)
    weights = torch.randn(shape, dtype=torch.float64)
    results = []
    for fused in (True, False):
        leaf = hidden.clone().requires_grad_()
        if fused:
            chosen, entropy = token_logprobs(leaf, targets, head, temperature)
        else:
            distribution = scaled_log_softmax(leaf, head, temperature)
            chosen = distribution.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            entropy = entropy_of(distribution)
        found = torch.autograd.grad((weights * chosen).sum(), (leaf, *head.parameters()))
        results.append([chosen.detach(), entropy.detach(), *found])
    assert_close(results[0], results[1])
    assert not token_logprobs(hidden.requires_grad_(), targets, head, temperature)[1].requires_grad


def test_extreme_logits_stay_finite() -> None:
    head = nn.Identity()
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e30, 5.0, 4.0]], dtype=torch.float32, requires_grad=True)
    chosen, entropy = token_logprobs(logits, torch.tensor([0, 0]), head, 1.0)
    chosen.sum().backward()
    assert chosen[0] == 0.0
    assert entropy.isfinite().all()
    assert logits.grad.isfinite().all()


def test_half_precision_heads_are_scored_in_fp32() -> None:
    torch.manual_seed(0)
    head = nn.Linear(4, 11).bfloat16()
    hidden = torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    chosen, entropy = token_logprobs(hidden, torch.arange(5), head, 1.0)
    assert chosen.dtype == entropy.dtype == torch.float32
    chosen.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
