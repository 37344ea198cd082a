"""Where tokens lie in the K/V log: a bijection, in blocks, without room for rows that took no part."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from thoughtcache.learner.chunk_plan import Chunk
from thoughtcache.learner.kv_layout import LogLayout

CPU = torch.device("cpu")
# (columns, rows) of every chunk
PLANS = [
    [(4, 3), (3, 3), (1, 2), (5, 2), (2, 1)],
    [(1, 1)],
    [(11, 4), (1, 4), (7, 4)],
]


def chunks_of(plan: list[tuple[int, int]]) -> list[Chunk]:
    start, chunks = 0, []
    for columns, rows in plan:
        chunks.append(
            Chunk(
                segment=0,
                start=start,
                stop=start + columns,
                opens=start == 0,
                rows=rows,
                first_score=0,
                last_score=0,
                entry=start,
                evicted=0,
            )
        )
        start += columns
    return chunks


def naive_numbers(chunks: list[Chunk]) -> dict[tuple[int, int], int]:
    """(column, row) -> number of the token."""
    order = [
        (column, row) for chunk in chunks for column in range(chunk.start, chunk.stop) for row in range(chunk.rows)
    ]
    return {place: number for number, place in enumerate(order)}


@pytest.mark.parametrize("plan", PLANS)
def test_blocks_hold_the_columns_in_order(plan: list[tuple[int, int]]) -> None:
    chunks = chunks_of(plan)
    layout, numbers = LogLayout(chunks, CPU), naive_numbers(chunks)
    assert layout.num_tokens == len(numbers)
    last = chunks[-1].stop
    for start in range(last):
        for stop in range(start, last + 1):
            blocks = layout.blocks(start, stop)
            expected = [
                numbers[column, row] for column in range(start, stop) for row in range(4) if (column, row) in numbers
            ]
            assert [token for block in blocks for token in range(block.first, block.last)] == expected
            # Neighbours differ in their rows: fewer blocks there cannot be.
            assert all(one.rows != other.rows for one, other in pairwise(blocks))


def test_an_empty_range_has_no_blocks() -> None:
    assert LogLayout(chunks_of(PLANS[0]), CPU).blocks(9, 4) == []


@pytest.mark.parametrize("plan", PLANS)
def test_tokens_of_chosen_columns(plan: list[tuple[int, int]]) -> None:
    chunks = chunks_of(plan)
    layout, numbers = LogLayout(chunks, CPU), naive_numbers(chunks)
    generator = torch.Generator().manual_seed(0)
    for chunk in chunks:
        columns = torch.randint(0, chunk.stop, (chunk.rows, 2, 7), generator=generator)
        found = layout.tokens(columns)
        for (row, head, place), column in zip(
            torch.cartesian_prod(*map(torch.arange, columns.shape)).tolist(), columns.flatten().tolist(), strict=True
        ):
            assert found[row, head, place] == numbers[column, row]
