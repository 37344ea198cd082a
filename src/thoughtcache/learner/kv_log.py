"""The keys and values of every token of a replay, so that any chunk can be entered again.

Memory: `2 * L * H * D` numbers in the model's dtype for every token that a chunk ran, on the model's device or on the
host. This is the only part of an exact replay that grows with the rollout.

What a chunk adds, and what one finds resident, are contiguous blocks (kv_layout.py). On CUDA, where the host copy is
pinned, such blocks move without the CPU waiting; scattered memory would go through unpinned buffers, one wait each.
The copies are ordered with the compute stream. They have no stream of their own that would hide them behind it.

On CUDA: benchmarks/gpu/memory.py and benchmarks/gpu/profiled.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thoughtcache.cache.budgets import LayerBudgets
from thoughtcache.cache.evict import split_thoughts
from thoughtcache.cache.rotation import Rotations
from thoughtcache.learner.chunk import Past, recorded_slots
from thoughtcache.learner.chunk_plan import Chunk, given_columns
from thoughtcache.learner.kv_layout import LogLayout
from thoughtcache.learner.resident import Resident, resident_by_head
from thoughtcache.policy.batch import RolloutBatch
from thoughtcache.policy.modes import Place, check_place

HOST = torch.device("cpu")


class KVLog:
    """Keys and values by column of [prompt | thoughts], and which columns each chunk finds resident.

    Args:
        batch: the rollouts.
        chunks: all chunks of the replay.
        place: "device" or "host".
        rotations: key rotations of every layer with rolling positions; None with absolute ones.

    Attributes:
        layers: keys and values of every layer, [tokens, H, D] each; empty until something is kept.

    Raises:
        ValueError: if `place` is neither.
    """

    def __init__(
        self, batch: RolloutBatch, chunks: list[Chunk], place: Place, rotations: Rotations | None = None
    ) -> None:
        check_place(place)
        self.rollouts, self.chunks = batch.rollouts, chunks
        self.width = batch.prompts.ids.shape[1]
        self.device = batch.prompts.ids.device
        self.where = HOST if place == "host" else self.device
        self.budgets = batch.budgets
        self.rotations = rotations
        self.given = given_columns(chunks[0])
        self.layout = LogLayout([*self.given, *chunks], self.where)
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.resident: list[Resident | None] = list(_resident_columns(batch, chunks, self.where))
        if batch.budgets is not None and batch.budgets.columns is not None:
            self.resident = resident_by_head(batch, chunks, self.where)
        self._is_moving = False

    @property
    def num_bytes(self) -> int:
        """Bytes that the log holds."""
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)

    def write(self, chunk: Chunk, past: Past) -> None:
        """Keep what a chunk has added: the last columns of its exit."""
        if not self.layers:
            self.layers = [(self._empty(keys), self._empty(values)) for keys, values in past]
        added = chunk.stop - chunk.start
        for kept, new in zip(self.layers, past, strict=True):
            for log, tensor in zip(kept, new, strict=True):
                self._store(log, chunk, tensor[:, :, tensor.shape[2] - added :])

    def write_given(self, past: Past) -> None:
        """Keep the prompt columns that were handed over."""
        (chunk,) = self.given
        self.write(chunk, past)

    def fill(self) -> None:
        """Take the record that sampling left (`Rollout.keys_values`) instead of a forward pass.

        Raises:
            ValueError: if a rollout carries none, or one of another length.
        """
        records: list[Tensor] = []
        for row, rollout in enumerate(self.rollouts):
            expected = len(rollout.prompt_ids) + len(rollout.token_ids) - 1
            record = rollout.keys_values
            if record is None or record.shape[3] != expected:
                raise ValueError(
                    f"rollout {row} carries no keys and values of its {expected} processed tokens; sample it with "
                    'rollout(record_kv="device") or "host", or replay with reuse=False'
                )
            records.append(record)
        for layer in range(records[0].shape[0]):
            pair = self._empty(records[0][layer, 0]), self._empty(records[0][layer, 1])
            for chunk in self.chunks:
                for log, block in zip(pair, self._recorded(records, chunk, layer), strict=True):
                    self._store(log, chunk, block)
            self.layers.append(pair)

    def read(self, index: int, chunk: Chunk) -> Past | None:
        """Keys and values that are resident when chunk `index` begins, before its own eviction; None for the first."""
        if chunk.start == 0:
            return None
        by_budget = self.resident[index]
        if by_budget is not None and self._is_pinned and self._is_moving:
            torch.cuda.current_stream(self.device).synchronize()  # the host itself reads the log
            self._is_moving = False
        found = []
        for layer, (keys, values) in enumerate(self.layers):
            resident = None if by_budget is None else by_budget.of_layer(layer, chunk.rows)
            tokens = None if resident is None else self.layout.tokens(self.width + resident)
            past = self._gather(keys, chunk, layer, tokens), self._gather(values, chunk, layer, tokens)
            found.append(past if self.rotations is None else self._rolled(past, chunk, resident, layer))
        return found

    def _rolled(
        self, past: tuple[Tensor, Tensor], chunk: Chunk, resident: Tensor | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Thoughts at the positions of their slots; the log has them where they were when they were written."""
        assert self.rotations is not None
        rotation, keys = self.rotations[layer], past[0]
        budgets, num_resident = self.budgets, keys.shape[2] - self.width
        if rotation is None or budgets is None or num_resident <= 0:
            return past
        places, num_evicted = torch.arange(num_resident, device=keys.device), budgets.num_evicted
        if resident is None:
            tokens = (places + self._num_gone(chunk, layer))[None, None]
        else:
            tokens = resident.to(keys.device)
        # Thoughts are written behind all that had come, less what positions had fallen by; they stand side by side in
        # front of the next one.
        fallen_before = ((tokens - budgets.largest) // num_evicted + 1).clamp_min(0) * num_evicted
        first = chunk.start - self.width - budgets.rolled(self._num_events(chunk)) - num_resident
        shift = first + places - (tokens - fallen_before)
        moved = rotation.shift(keys[:, :, self.width :], shift)
        return torch.cat([keys[:, :, : self.width], moved], dim=2), past[1]

    @staticmethod
    def _num_events(chunk: Chunk) -> int:
        """Eviction events before the entry of a chunk."""
        return chunk.segment - (1 if chunk.evicts else 0)

    def _num_gone(self, chunk: Chunk, layer: int) -> int:
        """Thoughts that a layer has evicted before."""
        budgets = self.budgets
        return 0 if budgets is None else budgets.num_evictions(layer, self._num_events(chunk)) * budgets.num_evicted

    @property
    def _is_pinned(self) -> bool:
        return self.where == HOST and self.device.type == "cuda"

    def _empty(self, like: Tensor) -> Tensor:
        """[tokens, H, D] for one layer's [..., H, n, D]."""
        shape = (self.layout.num_tokens, like.shape[-3], like.shape[-1])
        return torch.empty(shape, dtype=like.dtype, device=self.where, pin_memory=self._is_pinned)

    def _store(self, log: Tensor, chunk: Chunk, block: Tensor) -> None:
        """Keep [rows, H, n, D] of one chunk."""
        (place,) = self.layout.blocks(chunk.start, chunk.stop)
        kept = log[place.first : place.last].view(place.columns, place.rows, *log.shape[1:])
        kept.copy_(block.permute(2, 0, 1, 3), non_blocking=True)
        self._is_moving = True

    def _recorded(self, records: list[Tensor], chunk: Chunk, layer: int) -> Tensor:
        """[2, rows, H, n, D] of one chunk from the records [L, 2, H, n, D] of its rows; zero where a row has none."""
        _, _, heads, _, size = records[0].shape
        block = records[0].new_zeros(2, chunk.rows, heads, chunk.stop - chunk.start, size)
        for row, rollout in enumerate(self.rollouts[: chunk.rows]):
            padding, record = self.width - len(rollout.prompt_ids), records[row]
            begin, end = max(chunk.start, padding), min(chunk.stop, padding + record.shape[3])
            if begin < end:
                part = record[layer, :, :, begin - padding : end - padding]
                block[:, row, :, begin - chunk.start : end - chunk.start] = part
        return block

    def _gather(self, log: Tensor, chunk: Chunk, layer: int, tokens: Tensor | None) -> Tensor:
        """[rows, H, n, D] of the prompt so far and of the resident thoughts, by number if they were chosen."""
        found = self._columns(log, chunk.rows, 0, min(self.width, chunk.start))
        if tokens is None:
            found += self._columns(log, chunk.rows, self.width + self._num_gone(chunk, layer), chunk.start)
        else:
            thoughts = log[tokens, torch.arange(log.shape[1], device=log.device)[:, None]]
            found.append(thoughts.to(self.device, non_blocking=True))
        return _side_by_side(found)

    def _columns(self, log: Tensor, rows: int, start: int, stop: int) -> list[Tensor]:
        """Columns `start..stop` of the first rows, on the device, in pieces [rows, H, n, D]."""
        pieces = []
        for place in self.layout.blocks(start, stop):
            block = log[place.first : place.last].to(self.device, non_blocking=True)
            pieces.append(block.view(place.columns, place.rows, *log.shape[1:])[:, :rows].permute(1, 2, 0, 3))
        return pieces


def _side_by_side(pieces: list[Tensor]) -> Tensor:
    """Pieces [rows, H, n, D] joined along n, by copies: `cat` is slow where rows are not the outermost axis."""
    rows, heads, _, size = pieces[0].shape
    joined = pieces[0].new_empty(rows, heads, sum(piece.shape[2] for piece in pieces), size)
    start = 0
    for piece in pieces:
        joined[:, :, start : start + piece.shape[2]] = piece
        start += piece.shape[2]
    return joined


class _Resident(Resident):
    """Thoughts that a chunk finds resident, by budget.

    Args:
        columns: [rows, layers of the budget, H, n] by budget; int32.
        budgets: the budgets of all layers.
    """

    def __init__(self, columns: dict[int, Tensor], budgets: LayerBudgets) -> None:
        self.columns, self.budgets = columns, budgets

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(columns.nbytes for columns in self.columns.values())

    def of_layer(self, layer: int, rows: int) -> Tensor:
        """[rows, H, n] thoughts of the first rows in one layer, counted from 0."""
        sizes = self.budgets.sizes
        place = layer if sizes is None else sizes[:layer].count(sizes[layer])
        return self.columns[self.budgets.size(layer)][:rows, place].long()


def _resident_columns(batch: RolloutBatch, chunks: list[Chunk], device: torch.device) -> list[_Resident | None]:
    """The thoughts that each chunk finds resident on entry; None where they are a plain range in every layer.

    They lie where the log is, because they grow with the rollout as it does.
    """
    recorded = [e.slots for r in batch.rollouts for e in r.evictions if e.slots is not None]
    budgets = batch.budgets
    if not recorded or budgets is None or budgets.columns is not None:
        return [None] * len(chunks)
    _, heads, _ = recorded[0].shape
    # With even budgets all layers are full at every event.
    num_layers = recorded[0].shape[0] if budgets.sizes is None else len(budgets.sizes)
    width, found = batch.prompts.ids.shape[1], list[_Resident | None]()
    resident: dict[int, Tensor] = {}
    for chunk in chunks:
        found.append(_Resident(dict(resident), budgets) if resident else None)
        if chunk.evicts:
            slots = recorded_slots(batch, chunk.segment - 1, chunk.rows, device)
            assert slots is not None
            for size, places in budgets.due(chunk.segment - 1, num_layers).items():
                columns, gone = resident[size][: chunk.rows], slots[:, places]
                _, kept = split_thoughts(columns.flatten(1, 2).unsqueeze(-1), gone.flatten(1, 2), gone.shape[-1])
                resident[size] = kept.view(*columns.shape[:3], -1)
        added = torch.arange(max(chunk.start - width, 0), max(chunk.stop - width, 0), dtype=torch.int32, device=device)
        for size in budgets.distinct:
            count = num_layers if budgets.sizes is None else budgets.sizes.count(size)
            before = resident[size][: chunk.rows] if size in resident else added.new_empty(chunk.rows, count, heads, 0)
            resident[size] = torch.cat([before, added.expand(*before.shape[:3], -1)], dim=-1)
    return found
