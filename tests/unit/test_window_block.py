"""A block of slots is what a loop over slots and columns reads and writes, whichever indexing reaches it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thoughtcache.sampler.slots.window_block import WindowBlock

SLOTS, HEADS, CAPACITY, HEAD_SIZE, SIZE = 6, 2, 11, 3, 4
CASES = {
    "one slot": ([2], [5]),
    "all slots from one column": ([0, 1, 2, 3, 4, 5], [3] * 6),
    "a range from one column": ([1, 2, 3], [0] * 3),
    "no range from one column": ([0, 2, 5], [7] * 3),
    "gaps that a range would hide": ([1, 2, 4], [2] * 3),
    "a range from several columns": ([2, 3, 4], [1, 7, 3]),
    "several columns between two equal ones": ([0, 1, 3], [4, 2, 4]),
    "all in descending columns": ([0, 1, 2, 3, 4, 5], [7, 6, 5, 3, 2, 0]),
}


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_reads_and_writes_are_those_of_a_loop(case: str, static_shapes: bool) -> None:
    slots, starts = CASES[case]
    buffer = torch.randn(SLOTS, HEADS, CAPACITY, HEAD_SIZE)
    block = WindowBlock(
        np.array(slots),
        np.array(starts),
        SIZE,
        shape=(HEADS, CAPACITY),
        device=torch.device("cpu"),
        static_shapes=static_shapes,
    )
    expected = torch.stack([buffer[slot, :, start : start + SIZE] for slot, start in zip(slots, starts, strict=True)])
    assert torch.equal(block.read(buffer), expected)
    assert torch.equal(buffer[block.index], buffer[slots])
    for kept in (torch.randn(len(slots), HEADS, SIZE - 1, HEAD_SIZE), block.read(buffer)[:, :, 2:]):
        after, moved = buffer.clone(), kept.clone()
        for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
            after[slot, :, start : start + kept.shape[2]] = moved[row]
        block.write(buffer, kept)
        assert torch.equal(buffer, after)
