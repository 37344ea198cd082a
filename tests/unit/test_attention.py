"""Attention aligned at the lower right corner, against a loop over queries; also where no mask comes (as on CUDA)."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import LlamaConfig

from support.compare import assert_close
from thoughtcache.learner.attention import NAME, REPLACED, _attention, lower_right_attention
from thoughtcache.measuring.live_bytes import LiveBytes
from thoughtcache.measuring.operator_flops import OperatorFlops

SCALING = 0.3


def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Query `i` of n sees the first m - n + i + 1 of m keys; a key head serves several query heads."""
    shared, queries, columns = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    rows = []
    for head in range(query.shape[1]):
        for place in range(queries):
            seen = slice(0, columns - queries + place + 1)
            scores = SCALING * (key[:, head // shared, seen] @ query[:, head, place].unsqueeze(-1)).squeeze(-1)
            rows.append((scores.softmax(dim=-1).unsqueeze(1) @ value[:, head // shared, seen]).squeeze(1))
    return torch.stack(rows, dim=1).unflatten(1, (query.shape[1], queries)).transpose(1, 2)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("queries", "columns"), [(1, 1), (1, 5), (5, 5), (3, 7)])
def test_values_and_gradients(queries: int, columns: int, compiled: bool) -> None:
    torch.manual_seed(0)
    shapes = ((2, 4, queries, 8), (2, 2, columns, 8), (2, 2, columns, 8))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _attention(nn.Identity(), query, key, value, None, scaling=SCALING)[0]

    torch._dynamo.reset()
    function = torch.compile(run, backend="eager", fullgraph=True) if compiled else run
    expected, found = naive(*tensors), function(*tensors)
    assert_close(found, expected)
    weights = torch.randn_like(expected)
    assert_close(
        torch.autograd.grad((weights * found).sum(), tensors), torch.autograd.grad((weights * expected).sum(), tensors)
    )


@pytest.mark.parametrize("watcher", [LiveBytes, OperatorFlops, FakeTensorMode])
def test_attention_without_a_mask_can_be_watched(watcher: type) -> None:
    # Memory and arithmetic are counted by dispatch modes, under which PyTorch makes no tensors of the bias's class.
    with watcher():
        query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 7, 8)
        found = _attention(nn.Identity(), query, key, key, None, scaling=SCALING)[0]
    assert found.shape == (1, 3, 4, 8)


def test_the_model_has_its_own_attention_back_even_after_an_error() -> None:
    config = LlamaConfig(attn_implementation=REPLACED)
    with suppress(KeyError), lower_right_attention(config):
        assert config._attn_implementation == NAME
        raise KeyError("inside")
    assert config._attn_implementation == REPLACED


def test_another_attention_is_kept() -> None:
    config = LlamaConfig(attn_implementation="eager")
    with lower_right_attention(config):
        assert config._attn_implementation == "eager"
