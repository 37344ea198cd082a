"""Drawing tokens: one uniform number per row and position, so that a row never depends on its batch neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

_ROW_STRIDE = 1_000_003
_SEED_BOUND = 2**43
"""Times the stride it stays below the 64 bits of a generator."""
_BLOCK = 256
"""Tokens."""


def row_seeds(seed: int | Sequence[int], num_rows: int) -> list[tuple[int, int]]:
    """(seed, row) of the uniform numbers of every row: `(seed, i)` for one seed, `(seed[i], 0)` for one per row.

    Raises:
        ValueError: if there are not as many seeds as rows, or if a seed is too large or no integer.
    """
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        pairs = [(_integer(own), 0) for own in seed]
    else:
        pairs = [(_integer(seed), row) for row in range(num_rows)]
    if len(pairs) != num_rows:
        raise ValueError(f"{len(pairs)} seeds were given for {num_rows} prompts; pass one for all, or one per prompt")
    for value, _ in pairs:
        if abs(value) >= _SEED_BOUND:
            raise ValueError(f"seed must lie between -2**43 and 2**43, got {value}; take it modulo 2**43")
    return pairs


def _integer(seed: object) -> int:
    """A seed as a Python integer, which can be recorded and sent; numpy's are as good."""
    if not isinstance(seed, Integral):
        raise ValueError(f"seed must be an integer, or a list of one per prompt, got {seed!r}")
    return int(seed)


def uniform_numbers(seed: int, rows: range, count: int, device: torch.device) -> Float[Tensor, "B T"]:
    """Uniform numbers in [0, 1), fp64; row `i` depends on `(seed, i)` alone and a longer draw extends a shorter one."""
    drawn = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed * _ROW_STRIDE + row), dtype=torch.float64)
        for row in rows
    ]
    return torch.stack(drawn).to(device)


def sample_tokens(distribution: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], greedy: bool) -> Int[Tensor, " B"]:
    """One token per row by inversion of the cumulative distribution, or the most likely one.

    In two steps, a block of tokens and a token in it, so that only sums of blocks and one block are accumulated (in
    fp64). A token of probability zero is never drawn.

    Args:
        distribution: log-probabilities, -inf where a token cannot come.
        uniform: numbers in [0, 1).
        greedy: take the most likely token.
    """
    if greedy:
        return distribution.argmax(dim=-1)
    size = distribution.shape[1]
    probabilities = pad(distribution.exp(), (0, -size % _BLOCK)).reshape(len(distribution), -1, _BLOCK)
    up_to_block = probabilities.sum(dim=-1).double().cumsum(dim=-1)
    # Below the total even for the largest number below 1: the product is at least half a unit in its last place away.
    target = uniform.unsqueeze(-1) * up_to_block[:, -1:]
    block = torch.searchsorted(up_to_block, target, right=True).clamp_max(up_to_block.shape[1] - 1)
    target = target - pad(up_to_block, (1, 0)).gather(1, block)
    chosen = probabilities.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK)).squeeze(1)
    up_to_token = chosen.double().cumsum(dim=-1)
    # The sum of a block and the last of its running sums may differ in rounding.
    below_total = torch.nextafter(up_to_token[:, -1:], torch.zeros_like(target))
    inside = torch.searchsorted(up_to_token, torch.minimum(target, below_total), right=True)
    # Numbers that are not finite are found by whoever reads the log-probability; until then a token is a token.
    return (block * _BLOCK + inside).squeeze(-1).clamp_max(size - 1)
