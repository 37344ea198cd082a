"""Plain autograd through all segments: the naive twin of `reverse.py`, and the faster one where everything fits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.learner.chunk import Boundary, cut, join_scores, run_chunk
from thoughtcache.learner.chunk_plan import Chunk
from thoughtcache.learner.exits import Exit, exit_of_row, rows_over_in
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.policy.batch import RolloutBatch
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.scores import ScoreFunction


def plain_replay(
    policy: PolicyHandle,
    batch: RolloutBatch,
    chunks: list[Chunk],
    score: ScoreFunction,
    options: ReplayOptions,
    entry: Boundary | None = None,
    over: Sequence[int] = (),
) -> tuple[tuple[Tensor, ...], list[Exit]]:
    """All chunks under one graph, or under none; the arguments and what comes back are those of `reverse_replay`."""
    entry, scores, exits = Boundary() if entry is None else entry, [], dict[int, Exit]()
    for chunk in chunks:
        entry = cut(entry, chunk, options.gradient)
        found, entry = run_chunk(policy, batch, chunk, entry, score, anchored=options.anchored)
        scores.append(found)
        exits.update((row, exit_of_row(batch, chunk, row, entry)) for row in rows_over_in(batch, chunk, over))
    joined = join_scores(scores, len(batch.rollouts))
    return (joined[0] + _touch_encoders(policy.tuner), *joined[1:]), [exits[row] for row in over]


def _touch_encoders(tuner: ThoughtModel) -> Tensor | float:
    """A zero that depends on every parameter behind the states: short batches use few of them, and DDP wants all."""
    if not torch.is_grad_enabled() or not tuner.adapter_enabled:
        return 0.0
    parameters = [parameter for parameter in tuner.memory().parameters() if parameter.requires_grad]
    return sum((0.0 * p.sum() for p in parameters), start=0.0)
