"""The keys and values of every token of a replay, so that any chunk can be entered again.

Memory: `2 * L * B * H * (P + T - 1) * D` numbers in the model's dtype, on the model's device or on the host. This is
the only part of an exact replay that grows with the rollout. On CUDA the host copy is pinned and the copies are
asynchronous; they are ordered with the compute stream, so nothing waits for them but their readers.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from thoughtcache.cache.rotation import Rotations
from thoughtcache.cache.split import split_slots
from thoughtcache.policy.batch import RolloutBatch
from thoughtcache.policy.segment import Chunk, Past, recorded_slots

Place = Literal["device", "host"]
HOST = torch.device("cpu")


class KVLog:
    """Keys and values by column of [prompt | thoughts], and which columns each chunk finds resident.

    Args:
        batch: the rollouts.
        chunks: all chunks of the replay.
        place: "device" or "host".
        rotations: of every layer with rolling positions; None with absolute ones.

    Raises:
        ValueError: for another place.
    """

    def __init__(
        self, batch: RolloutBatch, chunks: list[Chunk], place: Place, rotations: Rotations | None = None
    ) -> None:
        check_place(place)
        self.rollouts = batch.rollouts
        self.width = batch.prompts.ids.shape[1]
        self.device = batch.prompts.ids.device
        self.columns = chunks[-1].stop
        self.on_host = place == "host" and self.device != HOST
        self.window, self.num_evicted = batch.settings.window, batch.settings.num_evicted or 0
        self.rotations = rotations
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.resident = _resident_columns(batch, chunks)

    @property
    def num_bytes(self) -> int:
        """Bytes that the log holds."""
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)

    def write(self, chunk: Chunk, past: Past) -> None:
        """Keep what a chunk has added: the last columns of its exit."""
        added = chunk.stop - chunk.start
        if not self.layers:
            self.layers = [(self._empty(keys), self._empty(values)) for keys, values in past]
        for kept, new in zip(self.layers, past, strict=True):
            for log, tensor in zip(kept, new, strict=True):
                block = tensor[:, :, tensor.shape[2] - added :]
                log[: chunk.rows, :, chunk.start : chunk.stop].copy_(block, non_blocking=True)

    def fill(self) -> None:
        """Take the record that sampling left (`Rollout.keys_values`) instead of a forward pass.

        Raises:
            ValueError: if a rollout carries none, or one of another model.
        """
        records: list[Tensor] = []
        for row, rollout in enumerate(self.rollouts):
            expected = len(rollout.prompt_ids) + len(rollout.token_ids) - 1
            record = rollout.keys_values
            if record is None or record.shape[3] != expected:
                raise ValueError(
                    f"rollout {row} carries no keys and values of its {expected} processed tokens; sample it with "
                    'rollout(kv_log="device") or "host", or replay with reuse=False'
                )
            records.append(record)
        num_layers, _, heads, _, size = records[0].shape
        target = torch.device("cpu") if self.on_host else self.device
        shape = (len(records), num_layers, 2, heads, self.columns, size)
        log = torch.zeros(shape, dtype=records[0].dtype, device=target, pin_memory=self.on_host)
        for row, (record, rollout) in enumerate(zip(records, self.rollouts, strict=True)):
            first = self.width - len(rollout.prompt_ids)
            log[row, ..., first : first + record.shape[3], :].copy_(record, non_blocking=True)
        self.layers = [(log[:, layer, 0], log[:, layer, 1]) for layer in range(num_layers)]

    def read(self, index: int, chunk: Chunk) -> Past | None:
        """What chunk number `index` finds resident on entry, before its own eviction; None before the first."""
        if chunk.start == 0:
            return None
        resident = self.resident[index]
        found = []
        for layer, (keys, values) in enumerate(self.layers):
            past = self._gather(keys, chunk, resident, layer), self._gather(values, chunk, resident, layer)
            found.append(past if self.rotations is None else self._rolled(past, chunk, resident, layer))
        return found

    def _rolled(
        self, past: tuple[Tensor, Tensor], chunk: Chunk, resident: Tensor | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Thoughts at the positions of their slots; the log has them where they were when they were written."""
        assert self.rotations is not None
        rotation, keys = self.rotations[layer], past[0]
        if rotation is None or self.window is None or keys.shape[2] <= self.width:
            return past
        places = torch.arange(keys.shape[2] - self.width, device=keys.device)
        if resident is None:
            tokens = (places + self._num_evictions(chunk) * self.num_evicted)[None, None]
        else:
            tokens = resident[: chunk.rows, layer].long()
        evictions_before = ((tokens - self.window) // self.num_evicted + 1).clamp_min(0)
        shift = places - (tokens - evictions_before * self.num_evicted)
        moved = rotation.shift(keys[:, :, self.width :], shift)
        return torch.cat([keys[:, :, : self.width], moved], dim=2), past[1]

    @staticmethod
    def _num_evictions(chunk: Chunk) -> int:
        """Evictions before the entry of a chunk."""
        return chunk.segment - (1 if chunk.evicts else 0)

    def _empty(self, like: Tensor) -> Tensor:
        rows, heads, _, size = like.shape
        shape = (rows, heads, self.columns, size)
        if self.on_host:
            return torch.empty(shape, dtype=like.dtype, device=HOST, pin_memory=True)
        return like.new_empty(shape)

    def _gather(self, log: Tensor, chunk: Chunk, resident: Tensor | None, layer: int) -> Tensor:
        prompt = log[: chunk.rows, :, : min(self.width, chunk.start)]
        if resident is None:
            first = self.width + self._num_evictions(chunk) * self.num_evicted
            thoughts = log[: chunk.rows, :, first : max(first, chunk.start)]
        else:
            columns = (self.width + resident[: chunk.rows, layer].long()).unsqueeze(-1).to(log.device)
            thoughts = log[: chunk.rows].gather(2, columns.expand(-1, -1, -1, log.shape[3]))
        pieces = [piece.to(self.device, non_blocking=True) for piece in (prompt, thoughts)]
        return torch.cat(pieces, dim=2)


def check_place(place: str) -> None:
    """Refuse unknown places for the log.

    Raises:
        ValueError: with the allowed values.
    """
    if place not in get_args(Place):
        raise ValueError(f'kv_log={place!r} is not known; use "device" or "host"')


def _resident_columns(batch: RolloutBatch, chunks: list[Chunk]) -> list[Tensor | None]:
    """[rows, L, H, n] thought columns that each chunk finds resident on entry; None where they are a plain range."""
    if all(eviction.slots is None for rollout in batch.rollouts for eviction in rollout.evictions):
        return [None] * len(chunks)
    width, device = batch.prompts.ids.shape[1], batch.prompts.ids.device
    found: list[Tensor | None] = []
    resident: Tensor | None = None
    for chunk in chunks:
        found.append(resident)
        if chunk.evicts:
            slots = recorded_slots(batch, chunk.segment - 1, chunk.rows, device)
            assert slots is not None
            assert resident is not None
            columns = resident[: chunk.rows]
            _, kept = split_slots(columns.flatten(1, 2).unsqueeze(-1), slots.flatten(1, 2), slots.shape[-1])
            resident = kept.view(*columns.shape[:3], -1)
        if resident is None:
            example = next(e.slots for r in batch.rollouts for e in r.evictions if e.slots is not None)
            resident = torch.empty(chunk.rows, *example.shape[:2], 0, dtype=torch.int32, device=device)
        resident = resident[: chunk.rows]
        added = torch.arange(max(chunk.start - width, 0), max(chunk.stop - width, 0), dtype=torch.int32, device=device)
        resident = torch.cat([resident, added.expand(*resident.shape[:3], -1)], dim=-1)
    return found
