"""The records of sampling, in the shape in which a replay's own forward pass would have found them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.cache.base import States
from thoughtcache.learner.chunk_plan import Chunk
from thoughtcache.policy.batch import RolloutBatch


def recorded_scores(batch: RolloutBatch) -> tuple[Tensor, Tensor]:
    """[B, T] log-probabilities and entropies, zero behind the end of a row.

    Raises:
        ValueError: if a rollout carries no entropies.
    """
    device = batch.token_ids.device
    entropies = [rollout.entropies for rollout in batch.rollouts]
    for row, values in enumerate(entropies):
        if values is None:
            raise ValueError(
                f'rollout {row} carries no recorded entropies; sample it with rollout(record_kv="device") or "host", '
                "or replay with reuse=False"
            )
    logprobs = pad_sequence([rollout.logprobs.to(device) for rollout in batch.rollouts], batch_first=True)
    return logprobs, pad_sequence([values.to(device) for values in entropies if values is not None], batch_first=True)


def entry_states(tuner: ThoughtModel, batch: RolloutBatch, chunk: Chunk) -> States:
    """States on entry to a chunk, before its own eviction; None where the chunk makes its own or there are none.

    Raises:
        ValueError: if a rollout with evictions carries no states.
    """
    if chunk.start == 0 or not tuner.adapter_enabled:
        return None
    initial = tuner.initial_states()
    num_evictions = chunk.segment - (1 if chunk.evicts else 0)
    if initial is None or num_evictions == 0 or not tuner.memory().state_bytes:
        return initial
    rows = []
    for row, rollout in enumerate(batch.rollouts[: chunk.rows]):
        if rollout.states is None and rollout.evictions:
            raise ValueError(
                f"rollout {row} carries no recorded states; sample it with anchors=True, or replay with reuse=False"
            )
        reached = rollout.states is not None and rollout.states.shape[0] >= num_evictions
        # A row that ended before stays in its chunk only between longer ones, and nothing reads its state.
        rows.append(rollout.states[num_evictions - 1] if reached and rollout.states is not None else None)
    example = next(states for states in rows if states is not None)
    # One transfer for all layers: the records of a GPU lie on the host.
    stacked = torch.stack([torch.zeros_like(example) if states is None else states for states in rows]).to(initial[0])
    return [stacked[:, layer] for layer in range(stacked.shape[1])]
