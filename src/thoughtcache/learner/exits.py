"""What one row of a replay holds when its thoughts are over, and how the link behind it goes on from there.

A link that continues another one (`records.Continuation`) is replayed in a batch of its own behind that of the link
before, a *wave* (`waves.py`). Between two waves stand an `Exit` per row and a fold, in plain autograd: what leaves is
absorbed, what stays becomes the first columns of the next wave. Its naive twin is `fold` in policy/naive.py.

Axes: L layers, H kv heads, n columns of a row, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from thoughtcache.cache.evict import split_thoughts
from thoughtcache.learner.chunk import Boundary
from thoughtcache.learner.chunk_plan import Chunk
from thoughtcache.policy.batch import RolloutBatch
from thoughtcache.policy.continuations import num_kept
from thoughtcache.policy.limits import num_before
from thoughtcache.records import Continuation, Rollout
from thoughtcache.state.memory import Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """The cache of one row: its prompt and resident thoughts without padding, and its states; None for the identity."""

    keys: Float[Tensor, "L H n D"]
    values: Float[Tensor, "L H n D"]
    states: Float[Tensor, "L *state"] | None

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors, as many for every row of a batch."""
        return [self.keys, self.values] if self.states is None else [self.keys, self.values, self.states]


def as_exits(tensors: Sequence[Tensor], num_rows: int) -> list[Exit]:
    """Exits of so many rows from their tensors, one row after the other."""
    size = len(tensors) // num_rows if num_rows else 0
    rows = [tensors[row * size : (row + 1) * size] for row in range(num_rows)]
    return [Exit(keys=row[0], values=row[1], states=row[2] if size == 3 else None) for row in rows]


def rows_over_in(batch: RolloutBatch, chunk: Chunk, rows: Sequence[int]) -> list[int]:
    """Which of these rows process their last thought in a chunk."""
    width = batch.prompts.ids.shape[1]
    return [row for row in rows if chunk.start <= width + batch.lengths[row] - 2 < chunk.stop]


def exit_of_row(batch: RolloutBatch, chunk: Chunk, row: int, leaving: Boundary) -> Exit:
    """The cache of a row whose last processed thought lies in a chunk, from what the chunk leaves.

    Args:
        batch: the rollouts.
        chunk: the chunk.
        row: number of the row.
        leaving: exit of the chunk; behind the row's own columns it holds padding.
    """
    assert leaving.past is not None
    width = batch.prompts.ids.shape[1]
    padding = width - len(batch.rollouts[row].prompt_ids)
    behind = chunk.stop - (width + batch.lengths[row] - 1)
    stop = leaving.past[0][0].shape[2] - behind
    keys, values = (torch.stack([pair[i][row, :, padding:stop] for pair in leaving.past]) for i in (0, 1))
    states = None
    if leaving.states is not None:
        # One initial state serves all rows until something is absorbed.
        states = torch.stack([state[row if state.shape[0] > 1 else 0] for state in leaving.states])
    return Exit(keys=keys, values=values, states=states)


def fold_exit(memory: Memory, link: Rollout, following: Continuation, end: Exit, *, anchored: bool) -> Exit:
    """The columns and states with which the next link begins; differentiable. Of what runs here it keeps the entry.

    Args:
        memory: what learns from the thoughts that leave.
        link: the link that is over.
        following: how the next one goes on from it.
        end: the cache in which it is over.
        anchored: replace recomputed states by recorded values, with the gradient of the recomputed ones.

    Raises:
        ValueError: if recorded states are wanted and missing.
    """
    prompt, columns = len(link.prompt_ids), end.keys.shape[2]
    kept = columns - num_kept(link, following.first_kept)
    keys, values = (torch.cat([one[:, :, :prompt], one[:, :, kept:]], dim=2) for one in (end.keys, end.values))
    states = end.states
    if states is None or memory.absorber() is None:
        return Exit(keys=keys, values=values, states=states)
    if kept > prompt:
        leaving = end.keys[:, :, prompt:kept], end.values[:, :, prompt:kept]
        positions = None
        if memory.absorbs_positions:
            positions = num_before(link) + resident_thoughts(link).to(keys.device)[:, :, : kept - prompt]

        def absorbed(states: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            absorb = memory.absorber()
            assert absorb is not None
            after = []
            for layer, pair in enumerate(zip(keys, values, strict=True)):
                where = None if positions is None else positions[layer if len(positions) > 1 else 0][None]
                after.append(absorb(layer, states[layer][None], pair[0][None], pair[1][None], where, None)[0])
            return torch.stack(after)

        states = checkpoint(absorbed, states, *leaving, use_reentrant=False, preserve_rng_state=False)
    if anchored:
        if following.state is None:
            raise ValueError(
                "a link carries no recorded state; replay it with anchored=False, or sample with anchors=True"
            )
        if following.state.shape != states.shape:
            raise ValueError(
                f"a link recorded states of shape {tuple(following.state.shape[1:])}, the adapter has "
                f"{tuple(states.shape[1:])}; replay it with the adapter that sampled it"
            )
        states = states + (following.state.to(states) - states.detach())
    return Exit(keys=keys, values=values, states=states)


def entry_of_batch(batch: RolloutBatch, begun: Sequence[Exit]) -> Boundary:
    """The first columns of a wave, all but the last one of each prompt, and the states of its rows.

    Args:
        batch: the links of the wave.
        begun: what each row begins with.
    """
    given = batch.prompts.ids.shape[1] - 1

    def columns(ends: Sequence[Tensor], layer: int) -> Tensor:
        return torch.stack([pad(end[layer], (0, 0, given - end.shape[2], 0)) for end in ends])

    keys, values = [end.keys for end in begun], [end.values for end in begun]
    past = [(columns(keys, layer), columns(values, layer)) for layer in range(keys[0].shape[0])]
    states = [end.states for end in begun if end.states is not None]
    by_layer = [torch.stack([state[layer] for state in states]) for layer in range(len(past))] if states else None
    return Boundary(past=past, states=by_layer)


def resident_thoughts(link: Rollout) -> Int[Tensor, "#L #H n"]:
    """Which thoughts of a link every layer and head holds at its end, counted from 0; one for all where they agree."""
    resident = torch.zeros(1, 1, 0, dtype=torch.long)
    first = 0
    for before, event in [*((event.before_token, event) for event in link.evictions), (len(link.token_ids) - 1, None)]:
        new = torch.arange(first, before).expand(*resident.shape[:2], -1)
        resident, first = torch.cat([resident, new], dim=2), before
        if event is None:
            break
        slots = None if event.slots is None else event.slots.cpu()
        if slots is not None:
            resident = resident.expand(*slots.shape[:2], -1)
        resident = split_thoughts(resident.unsqueeze(-1), slots, event.num_tokens)[1].squeeze(-1)
    return resident
