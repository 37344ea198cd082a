"""The decode loop: slots that are refilled as soon as a sequence ends.

One round: fill free slots with prefilled prompts; draw a token in every slot from its last hidden state; harvest the
sequences that ended; evict and absorb where a window is full; one forward pass of one token per slot. All slots share
the forward pass and nothing else: a sequence depends on its prompt, its seed and its row number alone.

The host knows the schedule. It looks at the device only to see which sequences have drawn a stop token, on a GPU every
few rounds; what a slot draws after its stop token is cut off.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thoughtcache.cache.bounded_cache import AbsorbFn
from thoughtcache.cache.kv_recorder import KVRecorder
from thoughtcache.cache.schedule import eviction_points
from thoughtcache.cache.slot_cache import SlotCache, SlotEviction
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.kv_log import Place
from thoughtcache.policy.prefill import Prefilled, prefill, stack_past
from thoughtcache.policy.sampling import sample_tokens, uniform_numbers
from thoughtcache.policy.token_logprobs import entropy_of, scaled_log_softmax
from thoughtcache.records import Eviction, Rollout, SamplingSettings

ROUNDS_BETWEEN_LOOKS = 16
"""On a GPU; elsewhere looking costs nothing."""


@dataclass(kw_only=True, slots=True)
class _Sequence:
    """One sequence in a slot.

    Attributes:
        row: its number in the call.
        num_tokens: thoughts drawn so far.
        evictions: (state [L, G, R], chosen slots [L, H, E]) of each eviction.
        recorder: of its keys and values.
    """

    row: int
    prompt: tuple[int, ...]
    num_tokens: int = 0
    evictions: list[tuple[Tensor | None, Tensor | None]] = field(default_factory=list)
    recorder: KVRecorder | None = None


class Engine:
    """Samples all prompts of a call with a fixed number of slots.

    Args:
        policy: the parts of the model.
        prompt_ids: one list of tokens per sequence.
        settings: what all sequences share.
        stop_ids: tokens that end a sequence.
        row_numbers: of the sequences within the whole call, which their uniform numbers depend on.
        num_slots: sequences decoded at once.
        kv_log: where keys and values are recorded, None for no record.
        wrap_absorb: decorates the function that absorbs.
        progress: called with the number of sequences that were finished.
    """

    def __init__(
        self,
        policy: PolicyHandle,
        prompt_ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
        stop_ids: list[int],
        *,
        row_numbers: Sequence[int],
        num_slots: int,
        kv_log: Place | None,
        wrap_absorb: Callable[[AbsorbFn], AbsorbFn] | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.policy, self.settings, self.kv_log, self.progress = policy, settings, kv_log, progress
        self.prompts = [tuple(ids) for ids in prompt_ids]
        self.row_numbers = row_numbers
        self.pending = deque(range(len(self.prompts)))
        self.users = Counter(self.prompts)
        self.prefilled: dict[tuple[int, ...], Prefilled] = {}
        self.slots: list[_Sequence | None] = [None] * num_slots
        self.results: list[Rollout | None] = [None] * len(self.prompts)
        device, count = policy.device, settings.max_new_tokens
        self.stops = torch.tensor(stop_ids, device=device, dtype=torch.long)
        self.looks_every = ROUNDS_BETWEEN_LOOKS if device.type == "cuda" else 1
        self.cache: SlotCache = policy.tuner.new_slots(
            num_slots=num_slots,
            capacity=max(map(len, self.prompts)) + min(count, settings.window or count),
            window=settings.window,
            num_evicted=settings.num_evicted,
            eviction=settings.eviction,
            seed=settings.seed,
        )
        if wrap_absorb is not None and self.cache.absorb is not None:
            self.cache.absorb = wrap_absorb(self.cache.absorb)
        self.tokens = torch.zeros(num_slots, count, dtype=torch.long, device=device)
        self.uniform = torch.zeros(num_slots, count, dtype=torch.float64, device=device)
        self.stopped = torch.zeros(num_slots, dtype=torch.bool, device=device)
        # Made with the first hidden states, whose dtypes they take.
        self.hidden: Tensor | None = None
        self.logprobs: Tensor | None = None
        self.entropies: Tensor | None = None

    def run(self) -> list[Rollout]:
        """All rollouts, in the order of the prompts."""
        rounds = 0
        while self.pending or self._active():
            self._admit()
            self._draw()
            rounds += 1
            self._harvest(look=rounds % self.looks_every == 0)
            active = self._active()
            if not active:
                continue
            if not self.pending and 2 * len(active) <= len(self.slots):
                self._shrink(active)
                active = self._active()
            due = self.cache.due(active)
            if due:
                self._evict(due)
            self._forward(active)
        return [result for result in self.results if result is not None]

    def _active(self) -> list[int]:
        return [slot for slot, sequence in enumerate(self.slots) if sequence is not None]

    def _admit(self) -> None:
        """Fill free slots; a prompt with several completions is processed once."""
        free = [slot for slot, sequence in enumerate(self.slots) if sequence is None]
        rows = [self.pending.popleft() for _ in range(min(len(free), len(self.pending)))]
        if not rows:
            return
        slots = free[: len(rows)]
        new = list(dict.fromkeys(self.prompts[row] for row in rows if self.prompts[row] not in self.prefilled))
        if new:
            self.prefilled.update(zip(new, prefill(self.policy, new), strict=True))
        entries = [self.prefilled[self.prompts[row]] for row in rows]
        lengths = [len(self.prompts[row]) for row in rows]
        self.cache.fill(slots, stack_past(entries), lengths)
        if self.hidden is None:
            self.hidden = entries[0].hidden.new_zeros(len(self.slots), entries[0].hidden.shape[0])
        self.hidden[slots] = torch.stack([entry.hidden for entry in entries])
        self.uniform[slots] = torch.cat(
            [
                uniform_numbers(self.settings.seed, range(number, number + 1), self.tokens.shape[1], self.tokens.device)
                for number in (self.row_numbers[row] for row in rows)
            ]
        )
        self.stopped[slots] = False
        for slot, row in zip(slots, rows, strict=True):
            self.slots[slot] = self._sequence(row)
            self.users[self.prompts[row]] -= 1
            if not self.users[self.prompts[row]]:
                del self.prefilled[self.prompts[row]]

    def _sequence(self, row: int) -> _Sequence:
        prompt = self.prompts[row]
        recorder = None
        if self.kv_log is not None:
            columns = len(prompt) + self.tokens.shape[1] - 1
            recorder = KVRecorder(self.cache, columns, on_host=self.kv_log == "host")
        return _Sequence(row=row, prompt=prompt, recorder=recorder)

    def _draw(self) -> None:
        """One token in every slot; free slots draw one that nobody reads."""
        assert self.hidden is not None
        distribution = scaled_log_softmax(self.hidden, self.policy.head, self.settings.scoring_temperature)
        steps = [0 if sequence is None else sequence.num_tokens for sequence in self.slots]
        at = self.cache._index(steps).unsqueeze(1)
        chosen = sample_tokens(
            distribution, self.uniform.gather(1, at).squeeze(1), greedy=self.settings.temperature == 0
        )
        if self.logprobs is None:
            self.logprobs = torch.zeros(self.tokens.shape, dtype=distribution.dtype, device=distribution.device)
            self.entropies = None if self.kv_log is None else torch.zeros_like(self.logprobs)
        column = chosen.unsqueeze(1)
        self.tokens.scatter_(1, at, column)
        self.logprobs.scatter_(1, at, distribution.gather(1, column))
        if self.entropies is not None:
            self.entropies.scatter_(1, at, entropy_of(distribution).unsqueeze(1))
        self.stopped |= torch.isin(chosen, self.stops)
        for sequence in self.slots:
            if sequence is not None:
                sequence.num_tokens += 1

    def _harvest(self, *, look: bool) -> None:
        """Take out the sequences that are over."""
        full = [
            slot for slot, sequence in enumerate(self.slots) if sequence and sequence.num_tokens == self.tokens.shape[1]
        ]
        if look or full:
            stopped = self.stopped.tolist()
            full = [slot for slot, sequence in enumerate(self.slots) if sequence and (stopped[slot] or slot in full)]
        for slot in full:
            sequence = self.slots[slot]
            assert sequence is not None
            self.results[sequence.row] = self._record(slot, sequence)
            self.slots[slot] = None
            self.cache.free(slot)
            if self.progress is not None:
                self.progress(1)

    def _record(self, slot: int, sequence: _Sequence) -> Rollout:
        """The rollout of a slot, cut at its first stop token."""
        assert self.logprobs is not None
        tokens = self.tokens[slot, : sequence.num_tokens]
        ends = torch.isin(tokens, self.stops).tolist()
        length = ends.index(True) + 1 if any(ends) else len(ends)
        processed = len(sequence.prompt) + length - 1
        points = eviction_points(length - 1, self.settings.window, self.settings.num_evicted)
        states = [state for state, _ in sequence.evictions[: len(points)] if state is not None]
        keys_values = None
        if sequence.recorder is not None:
            if sequence.recorder.num_recorded < processed:
                sequence.recorder.copy_new(self.cache, slot, len(sequence.prompt) + sequence.num_tokens - 1)
            keys_values = sequence.recorder.finished()[..., :processed, :]
        return Rollout(
            prompt_ids=list(sequence.prompt),
            token_ids=tokens[:length].tolist(),
            logprobs=self.logprobs[slot, :length].clone(),
            entropies=None if self.entropies is None else self.entropies[slot, :length].clone(),
            evictions=tuple(
                Eviction(before_token=point, num_tokens=self.settings.num_evicted or 0, slots=chosen)
                for point, (_, chosen) in zip(points, sequence.evictions, strict=False)
            ),
            states=torch.stack(states) if states else None,
            keys_values=keys_values,
            finish_reason="stop" if any(ends) else "length",
            settings=self.settings,
        )

    def _shrink(self, active: list[int]) -> None:
        """Nobody waits any more: drop the free slots."""
        self.cache.keep(active)
        rows = self.cache._index(active)
        assert self.hidden is not None
        assert self.logprobs is not None
        self.hidden, self.logprobs = self.hidden[rows], self.logprobs[rows]
        self.tokens, self.uniform, self.stopped = self.tokens[rows], self.uniform[rows], self.stopped[rows]
        self.entropies = None if self.entropies is None else self.entropies[rows]
        self.slots = [self.slots[slot] for slot in active]

    def _evict(self, due: list[int]) -> None:
        for slot in due:
            sequence = self.slots[slot]
            if sequence is not None and sequence.recorder is not None:
                sequence.recorder.copy_new(self.cache, slot, len(sequence.prompt) + sequence.num_tokens - 1)
        event: SlotEviction = self.cache.evict(due)
        for place, slot in enumerate(due):
            sequence = self.slots[slot]
            assert sequence is not None
            sequence.evictions.append(
                (
                    None if event.states is None else event.states[place],
                    None if event.chosen is None else event.chosen[place],
                )
            )

    def _forward(self, active: list[int]) -> None:
        """Process the drawn tokens."""
        last = [0 if sequence is None else sequence.num_tokens - 1 for sequence in self.slots]
        positions = [0 if s is None else len(s.prompt) + s.num_tokens - 1 for s in self.slots]
        mask = self.cache.prepare_step()
        output = self.policy.backbone(
            input_ids=self.tokens.gather(1, self.cache._index(last).unsqueeze(1)),
            attention_mask=mask,
            position_ids=self.cache._index(positions).unsqueeze(1),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden = output.last_hidden_state[:, -1]
        self.cache.finish_step(active)
