"""Computes where the tokens of a replay lie in its K/V log, with integers only.

The log is ordered by chunk, inside a chunk by column, and inside a column by the rows that took part. Rows that ended
take no room, and any range of columns in which equally many rows took part is one contiguous block. What the log holds
is said in kv_log.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from thoughtcache.learner.chunk_plan import Chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Successive columns of equally many rows.

    Attributes:
        first: number of its first token.
        columns: how many columns.
        rows: how many rows each of them has.
    """

    first: int
    columns: int
    rows: int

    @property
    def last(self) -> int:
        """Number of the token after its last one."""
        return self.first + self.columns * self.rows


class LogLayout:
    """Numbers the tokens that the chunks of a replay run, the padding of shorter prompts included.

    Args:
        chunks: all chunks, in order.
        device: where the log lies.

    Attributes:
        num_tokens: tokens of all chunks.
    """

    def __init__(self, chunks: Sequence[Chunk], device: torch.device) -> None:
        self._starts = [chunk.start for chunk in chunks]
        self._stops = [chunk.stop for chunk in chunks]
        self._rows = [chunk.rows for chunk in chunks]
        self._first: list[int] = []
        self.num_tokens = 0
        for chunk in chunks:
            self._first.append(self.num_tokens)
            self.num_tokens += chunk.rows * (chunk.stop - chunk.start)
        self._tables = torch.tensor([self._starts, self._rows, self._first], device=device)

    def blocks(self, start: int, stop: int) -> list[Block]:
        """Columns `start..stop` as the fewest blocks, in order; none for an empty range."""
        found: list[Block] = []
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            end, rows = min(stop, self._stops[index]), self._rows[index]
            first = self._first[index] + (start - self._starts[index]) * rows
            if found and found[-1].rows == rows:
                found[-1] = Block(first=found[-1].first, columns=found[-1].columns + end - start, rows=rows)
            else:
                found.append(Block(first=first, columns=end - start, rows=rows))
            start, index = end, index + 1
        return found

    def tokens(self, columns: Int[Tensor, "R H n"]) -> Int[Tensor, "R H n"]:
        """Numbers of the tokens of row `i` that stand in the columns `columns[i]`."""
        starts, rows, first = self._tables
        chunk = torch.searchsorted(starts, columns.contiguous(), right=True) - 1
        row = torch.arange(columns.shape[0], device=columns.device)[:, None, None]
        numbers: Tensor = first[chunk] + (columns - starts[chunk]) * rows[chunk] + row
        return numbers
