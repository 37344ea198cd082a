"""The chunks of a replay as integers: what `policy.segment.plan_chunks` makes, for rows of equal length.

Proof: tests/unit/test_plan_closed_form.py, against `plan_chunks`.
"""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.cache.schedule import segments
from thoughtcache.planning.setting import PlanSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkShape:
    """One chunk of every row.

    Attributes:
        segment: index of its segment.
        columns: n, tokens of a row that it runs.
        entry: resident tokens that it finds, before its own eviction; 0 at the start.
        evicted: E if it opens a segment after an eviction, else 0.
        scored: thought tokens that it scores.
    """

    segment: int
    columns: int
    entry: int
    evicted: int
    scored: int

    @property
    def leaving(self) -> int:
        """Resident tokens that it hands on, its own included."""
        return self.entry - self.evicted + self.columns


def learner_chunks(setting: PlanSetting) -> list[ChunkShape]:
    """What the learner runs: the chunks of the replay, or whole rows with the full cache."""
    if setting.learner == "checkpointed":
        columns = setting.prompt_tokens + setting.max_new_tokens
        return [ChunkShape(segment=0, columns=columns, entry=0, evicted=0, scored=setting.max_new_tokens)]
    return chunk_shapes(
        setting.prompt_tokens, setting.max_new_tokens, setting.window, setting.num_evicted, setting.chunk_tokens
    )


def chunk_shapes(
    prompt_tokens: int, max_new_tokens: int, window: int | None, num_evicted: int | None, chunk_tokens: int | None
) -> list[ChunkShape]:
    """The chunks in order.

    Args:
        prompt_tokens: P.
        max_new_tokens: T, of every row.
        window: W, None for the full cache.
        num_evicted: E.
        chunk_tokens: bound on the columns of one chunk; None keeps segments whole.
    """
    shapes: list[ChunkShape] = []
    entry = 0
    for index, part in enumerate(segments(max_new_tokens - 1, window, num_evicted)):
        begin, end = (0 if index == 0 else prompt_tokens + part.start), prompt_tokens + part.stop
        size = chunk_tokens or end - begin
        for start in range(begin, end, size):
            stop = min(start + size, end)
            first = max(start, prompt_tokens - 1)
            shape = ChunkShape(
                segment=index,
                columns=stop - start,
                entry=entry,
                evicted=(num_evicted or 0) if start == begin and index > 0 else 0,
                scored=max(0, stop - first),
            )
            shapes.append(shape)
            entry = shape.leaving
    return shapes
