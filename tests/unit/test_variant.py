"""The modulated low-rank term against the equation `y = W x + (alpha / R) A (S (B x))`, one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.compare import assert_close
from thoughtcache.adapter.variant import modulate

ROWS, TOKENS, OUTPUTS, SCALING = 3, 4, 7, 0.6


def equation(result: Tensor, down: Tensor, state: Tensor | None, up_weight: Tensor) -> Tensor:
    """Token by token; S [G, R] is that of the row."""
    found = result.double().clone()
    for row in range(ROWS):
        for token in range(TOKENS):
            read = down[row, token].double()
            if state is not None:
                read = state[row if len(state) > 1 else 0].double() @ read
            found[row, token] += SCALING * (up_weight.double() @ read)
    return found


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float32, torch.float64)], ids=str)
@pytest.mark.parametrize("states", [None, 1, ROWS])
@pytest.mark.parametrize(("num_global_tokens", "rank"), [(5, 3), (3, 5), (4, 4), (1, 1)])
def test_the_state_stands_between_the_two_matrices(
    num_global_tokens: int, rank: int, states: int | None, dtypes: tuple[torch.dtype, torch.dtype], in_place: bool
) -> None:
    """Also where it is square, as with the paper's sizes, and no shape tells S from its transpose."""
    if states is None:
        num_global_tokens = rank  # the identity
    base, adapter = dtypes
    result = torch.randn(ROWS, TOKENS, OUTPUTS, dtype=base)
    down = torch.randn(ROWS, TOKENS, rank, dtype=adapter)
    state = None if states is None else torch.randn(states, num_global_tokens, rank, dtype=torch.float64)
    up_weight = torch.randn(OUTPUTS, num_global_tokens, dtype=adapter)
    expected = equation(result, down, state, up_weight)
    found = modulate(result.clone(), down, state, up_weight, SCALING, in_place=in_place)
    assert found.dtype == torch.promote_types(base, adapter)
    assert_close(found, expected.to(found.dtype))
