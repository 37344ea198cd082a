"""The decode loop: slots that are refilled as soon as a sequence ends.

One round: fill free slots with prefilled prompts; draw a token in every slot from its last hidden state; harvest the
sequences that ended; evict and absorb where a window is full; one forward pass of one token per slot. All slots share
the forward pass and nothing else: a sequence depends on its prompt, its seed and its row number alone.

The host knows the schedule. It looks at the device only to see which sequences have ended, on a GPU every few rounds;
what a slot draws after its end is cut off (`drawing.py`). A round has no Python per slot: that is for slots in which a
sequence begins, evicts or ends.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from thoughtcache.cache.host_integers import Integers, to_device
from thoughtcache.cache.schedule import eviction_points
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.modes import Place
from thoughtcache.records import Eviction, Rollout, SamplingSettings
from thoughtcache.sampler.decode_step import DecodeStep, compile_evictions
from thoughtcache.sampler.drawing import Drawing
from thoughtcache.sampler.prefill import Prefilled, prefill
from thoughtcache.sampler.slots.kv_recorder import KVRecorder
from thoughtcache.sampler.slots.slot_cache import EvictFn, SlotCache, new_slots
from thoughtcache.sampler.stop_strings import StopStrings
from thoughtcache.sampler.weights.direct_linears import direct_linears
from thoughtcache.sampler.weights.packed_linears import packed_linears, worth_packing

ROUNDS_BETWEEN_LOOKS = 16
"""On a GPU; elsewhere looking costs nothing."""
COMPILED_COLUMNS = 64
"""With static shapes the columns of a slot are a multiple of this."""


@dataclass(kw_only=True, slots=True)
class _Sequence:
    """One sequence in a slot.

    Attributes:
        row: its number in the call.
        states: [evictions, L, G, R] on the host, with room for all that can come: one piece, so that it does not lie
            between what decoding allocates and frees.
        chosen: [L, H, E] slots of each eviction so far, on the host; None where the oldest left.
        recorder: of its keys and values.
    """

    row: int
    prompt: tuple[int, ...]
    states: Tensor | None = None
    chosen: list[Tensor | None] = field(default_factory=list)
    recorder: KVRecorder | None = None


class Engine:
    """Samples all prompts of a call with a fixed number of slots.

    Args:
        policy: the parts of the model.
        prompt_ids: one list of tokens per sequence.
        settings: what all sequences share, other than their seeds.
        seeds: (seed, row) of the uniform numbers of each sequence; the seed alone is that of evictions that draw.
        stop_ids: tokens that end a sequence.
        stop_strings: texts that end a sequence, or None.
        num_slots: sequences decoded at once.
        kv_log: where keys and values are recorded, None for no record.
        anchors: record the thought states after each eviction.
        compiled: static shapes and compiled decode and eviction steps.
        pack_weights: on a CPU, decode from packed copies of the weights; not with compiled steps.
        wrap_eviction: decorates the function that evicts: choice, move and absorption.
        progress: called with the number of sequences that were finished.
    """

    def __init__(
        self,
        policy: PolicyHandle,
        prompt_ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
        *,
        seeds: Sequence[tuple[int, int]],
        stop_ids: list[int],
        stop_strings: StopStrings | None,
        num_slots: int,
        kv_log: Place | None,
        anchors: bool,
        compiled: bool,
        pack_weights: bool,
        wrap_eviction: Callable[[EvictFn], EvictFn] | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.policy, self.settings, self.kv_log, self.progress = policy, settings, kv_log, progress
        self.anchors, self.compiled, self.pack_weights = anchors, compiled, pack_weights
        self.prompts, self.seeds = [tuple(ids) for ids in prompt_ids], seeds
        self.pending = deque(range(len(self.prompts)))
        self.users = Counter(self.prompts)
        self.prefilled: dict[tuple[int, ...], Prefilled] = {}
        self.slots: list[_Sequence | None] = [None] * num_slots
        self.results: list[Rollout | None] = [None] * len(self.prompts)
        device, count = policy.device, settings.max_new_tokens
        capacity = max(map(len, self.prompts)) + min(count, settings.window or count)
        self.looks_every = ROUNDS_BETWEEN_LOOKS if device.type == "cuda" else 1
        self.cache: SlotCache = new_slots(
            policy.tuner,
            num_slots=num_slots,
            # Few shapes, few graphs: prompts of many lengths share one.
            capacity=capacity + (-capacity % COMPILED_COLUMNS if compiled else 0),
            settings=settings,
            static_shapes=compiled,
        )
        if compiled:
            compile_evictions(self.cache)
        self.evict = self.cache.evict if wrap_eviction is None else wrap_eviction(self.cache.evict)
        self.step = DecodeStep(policy, compiled=compiled)
        self.drawing = Drawing(
            policy, settings, stop_ids, stop_strings, num_slots=num_slots, with_entropies=kv_log is not None
        )
        self.counts = np.zeros(num_slots, np.int64)
        # Made with the first hidden states, whose dtype it takes.
        self.hidden: Tensor | None = None

    def run(self) -> list[Rollout]:
        """All rollouts, in the order of the prompts."""
        tuner = self.policy.tuner
        with tuner.sampling(), ExitStack() as faster:
            # A compiler follows the modules' own calls, and would take new ones for new code.
            if not self.compiled:
                if self.pack_weights and worth_packing(len(self.slots), self.settings.max_new_tokens):
                    faster.enter_context(packed_linears(tuner.model, tuner.prefix))
                faster.enter_context(direct_linears(tuner))
            self._run()
        return [result for result in self.results if result is not None]

    def _run(self) -> None:
        rounds = 0
        while self.pending or self.cache.taken.any():
            self._admit()
            self._draw()
            rounds += 1
            self._harvest(look=rounds % self.looks_every == 0)
            if not self.cache.taken.any():
                continue
            self._shrink()
            due = self.cache.due()
            if due.size:
                self._evict(due)
            self.hidden = self.step(self.cache, self.drawing.last)

    def _admit(self) -> None:
        """Fill free slots; a prompt with several completions is processed once."""
        if not self.pending:
            return
        slots = np.flatnonzero(~self.cache.taken)[: len(self.pending)].tolist()
        if not slots:
            return
        rows = [self.pending.popleft() for _ in slots]
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for slot, row in zip(slots, rows, strict=True):
            self.slots[slot] = self._sequence(row)
            by_prompt.setdefault(self.prompts[row], []).append(slot)
        new = [prompt for prompt in by_prompt if prompt not in self.prefilled]
        if new:
            self.prefilled.update(zip(new, prefill(self.policy, new), strict=True))
        seeds = dict(zip(slots, (self.seeds[row] for row in rows), strict=True))
        for prompt, places in by_prompt.items():
            entry = self.prefilled[prompt]
            self.cache.fill(places, entry.past, [seeds[slot][0] for slot in places])
            if self.hidden is None:
                self.hidden = entry.hidden.new_zeros(len(self.slots), entry.hidden.shape[0])
            self.hidden[places] = entry.hidden
            self.users[prompt] -= len(places)
            if not self.users[prompt]:
                del self.prefilled[prompt]
            elif len(new) > 1 and prompt in new:
                self.prefilled[prompt] = entry.copied()  # of the padded batch it would keep all rows
        self.counts[slots] = 0
        self.drawing.admit(slots, list(seeds.values()), [self.prompts[row] for row in rows])

    def _sequence(self, row: int) -> _Sequence:
        prompt = self.prompts[row]
        recorder = None
        if self.kv_log is not None:
            recorder = KVRecorder(self.cache.device, on_host=self.kv_log == "host")
        return _Sequence(row=row, prompt=prompt, recorder=recorder)

    def _draw(self) -> None:
        """One token in every slot; free slots draw one that nobody reads."""
        assert self.hidden is not None
        self.drawing.draw(self.hidden)
        self.counts += self.cache.taken

    def _harvest(self, *, look: bool) -> None:
        """Take out the sequences that are over."""
        over = self.counts == self.settings.max_new_tokens
        if look or over.any():
            over |= self.drawing.ended(self.counts * self.cache.taken)
        for slot in np.flatnonzero(over & self.cache.taken).tolist():
            sequence = self.slots[slot]
            assert sequence is not None
            self.results[sequence.row] = self._record(slot, sequence)
            self.slots[slot], self.counts[slot] = None, 0
            self.cache.free(slot)
            if self.progress is not None:
                self.progress(1)

    def _record(self, slot: int, sequence: _Sequence) -> Rollout:
        """The rollout of a slot, cut at its end."""
        count = int(self.counts[slot])
        drawn = self.drawing.take(slot, count)
        length = len(drawn.token_ids)
        processed = len(sequence.prompt) + length - 1
        points = eviction_points(length - 1, self.settings.window, self.settings.num_evicted)
        if self.cache.device.type == "cuda" and sequence.chosen:
            # The host is about to read what the device was asked to write.
            torch.cuda.current_stream(self.cache.device).synchronize()
        keys_values = None
        if sequence.recorder is not None:
            if sequence.recorder.num_recorded < processed:
                sequence.recorder.copy_new(self.cache, slot, len(sequence.prompt) + count - 1)
            keys_values = sequence.recorder.finished(processed)
        return Rollout(
            prompt_ids=list(sequence.prompt),
            token_ids=drawn.token_ids,
            logprobs=drawn.logprobs,
            sampled_logprobs=drawn.sampled_logprobs,
            entropies=drawn.entropies,
            evictions=tuple(
                Eviction(before_token=point, num_tokens=self.settings.num_evicted or 0, slots=chosen)
                for point, chosen in zip(points, sequence.chosen, strict=False)
            ),
            states=None if sequence.states is None or not points else sequence.states[: len(points)].clone(),
            keys_values=keys_values,
            finish_reason=drawn.finish_reason,
            settings=replace(self.settings, seed=self.seeds[sequence.row][0]),
        )

    def _shrink(self) -> None:
        """Nobody waits any more and half of the slots are free: drop those. Static shapes keep them."""
        active = np.flatnonzero(self.cache.taken)
        if self.pending or self.compiled or 2 * len(active) > len(self.slots):
            return
        rows = to_device(active, self.cache.device)
        assert self.hidden is not None
        self.cache.keep(active)
        self.hidden = self.hidden[rows]
        self.drawing.keep(active.tolist(), rows)
        self.slots, self.counts = [self.slots[slot] for slot in active], self.counts[active]

    def _evict(self, due: Integers) -> None:
        for slot in due.tolist():
            sequence = self.slots[slot]
            if sequence is not None and sequence.recorder is not None:
                sequence.recorder.copy_new(self.cache, slot, len(sequence.prompt) + int(self.counts[slot]) - 1)
        event = self.evict(due)
        states = torch.stack(event.states, dim=1) if self.anchors and event.states else None
        for place, slot in enumerate(event.slots):
            sequence = self.slots[slot]
            assert sequence is not None
            if states is not None:
                self._anchor(sequence, states[place])
            sequence.chosen.append(None if event.chosen is None else self._to_host(event.chosen[place]))

    def _anchor(self, sequence: _Sequence, state: Tensor) -> None:
        """Record the state [L, G, R] after an eviction; nothing waits until the sequence is taken out."""
        if sequence.states is None:
            settings = self.settings
            count = len(eviction_points(settings.max_new_tokens - 1, settings.window, settings.num_evicted))
            sequence.states = self._on_host((count, *state.shape), state.dtype)
        sequence.states[len(sequence.chosen)].copy_(state, non_blocking=True)

    def _to_host(self, record: Tensor) -> Tensor:
        """Records grow with the length, so they leave a GPU at once."""
        return self._on_host(record.shape, record.dtype).copy_(record, non_blocking=True)

    def _on_host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self.cache.device.type == "cuda")
