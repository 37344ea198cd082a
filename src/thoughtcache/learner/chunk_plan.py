"""Plans the pieces of a rollout that the learner runs, with integers only.

A *chunk* is a run of columns over [prompt | thoughts] inside one segment (`cache/schedule.py`). `chunk.py` runs them;
the planner asks for the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from thoughtcache.cache.schedule import segments
from thoughtcache.policy.modes import GradientMode


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Columns `start..stop` of [prompt | thoughts], processed in one forward pass.

    Attributes:
        segment: index of the segment it lies in.
        start: first column.
        stop: column after the last one.
        opens: whether the segment starts here.
        rows: leading rows of the batch that take part.
        first_score: thought token that the first scored column predicts.
        last_score: thought token after the last predicted one; equal to `first_score` inside the prompt.
        entry: resident tokens that it finds, before its own eviction; 0 at the start. This and the next one are of
            the layers of one budget.
        evicted: thoughts that leave on entry.
        given: prompt columns that were handed over by the link before, instead of being run.
    """

    segment: int
    start: int
    stop: int
    opens: bool
    rows: int
    first_score: int
    last_score: int
    entry: int
    evicted: int
    given: int = 0

    @property
    def evicts(self) -> bool:
        """Whether an eviction happens on entry, in some layer."""
        return self.opens and self.segment > 0

    @property
    def is_first(self) -> bool:
        """Whether it is the first one of its batch."""
        return self.start == self.given

    @property
    def is_initial(self) -> bool:
        """Whether nothing was evicted before it, which leaves a memory in attention nothing to read."""
        return self.segment == 0 and not self.given

    @property
    def columns(self) -> int:
        """Tokens of a row that it runs."""
        return self.stop - self.start

    @property
    def scored(self) -> int:
        """Thought tokens of a row that it scores."""
        return self.last_score - self.first_score

    @property
    def leaving(self) -> int:
        """Resident tokens that it hands on, its own included."""
        return self.entry - self.evicted + self.columns


def plan_chunks(
    lengths: Sequence[int],
    prompt_columns: int,
    window: int | None,
    num_evicted: int | None,
    chunk_tokens: int | None = None,
    *,
    budget: int | None = None,
    given: int = 0,
) -> list[Chunk]:
    """The chunks of a batch in order: its segments, cut into pieces of at most `chunk_tokens` columns.

    Args:
        lengths: T of every row, best in falling order.
        prompt_columns: tokens of the longest prompt.
        window: thoughts before the first eviction: W, the smallest budget; None for the full cache.
        num_evicted: E; None with the full cache.
        chunk_tokens: bound on the columns of one chunk (prompt columns count); None keeps segments whole.
        budget: resident thoughts of the layers that `entry` and `evicted` speak of; `window` by default.
        given: prompt columns that are there before the first chunk.
    """
    late = 0 if budget is None or window is None or num_evicted is None else (budget - window) // num_evicted
    width, chunks, entry = prompt_columns, list[Chunk](), given
    for index, part in enumerate(segments(max(lengths) - 1, window, num_evicted)):
        begin, end = (given if index == 0 else width + part.start), width + part.stop
        size = chunk_tokens or end - begin
        for start in range(begin, end, size):
            stop = min(start + size, end)
            first = max(start, width - 1) - width + 1
            unfinished = [row for row, length in enumerate(lengths) if width + length - 2 >= start]
            opens = start == begin
            chunk = Chunk(
                segment=index,
                start=start,
                stop=stop,
                opens=opens,
                rows=unfinished[-1] + 1,
                first_score=first,
                last_score=max(first, stop - width + 1),
                entry=entry,
                evicted=(num_evicted or 0) if opens and index > late else 0,
                given=given,
            )
            chunks.append(chunk)
            entry = chunk.leaving
    return chunks


def cuts_states(chunk: Chunk, gradient: GradientMode) -> bool:
    """Whether no gradient leaves this chunk through its entry states; a block of n segments begins there."""
    return chunk.evicts and isinstance(gradient, int) and chunk.segment % gradient == 0


def cuts_past(chunk: Chunk, gradient: GradientMode) -> bool:
    """Whether no gradient leaves this chunk through its entry keys and values."""
    return cuts_states(chunk, gradient) or (chunk.evicts and gradient == "detached")


def given_columns(first: Chunk) -> list[Chunk]:
    """The columns that were handed over to the first chunk, as a chunk that nobody runs; none where it has no such."""
    if not first.given:
        return []
    return [replace(first, start=0, stop=first.given, opens=False, first_score=0, last_score=0, entry=0, given=0)]
