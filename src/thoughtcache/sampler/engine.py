"""The decode loop: slots that are refilled as soon as a sequence ends.

    with Engine(model, num_slots=16) as engine:
        number = engine.add(Request(prompt_ids=ids, max_new_tokens=100))
        while not engine.is_idle:
            for event in engine.step():
                ...

One step: fill free slots with prefilled prompts; draw a token in every slot from its last hidden state; harvest the
sequences that ended; evict and absorb where a window is full; one forward pass of one token per slot. All slots share
the forward pass and nothing else: a sequence depends on its request alone.

The host knows the schedule. It looks at the device only to see which sequences have ended, on a GPU every few rounds;
what a slot draws after its end is cut off (`drawing.py`). A round has no Python per slot: that is for slots in which a
sequence begins, evicts or ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from thoughtcache.adapter.attention import thought_attention
from thoughtcache.cache.host_integers import Integers
from thoughtcache.config import OWN_WINDOW
from thoughtcache.measuring.phase_timer import PhaseTimer
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.modes import Place, check_place
from thoughtcache.records import Rollout
from thoughtcache.sampler.decode_step import DecodeStep, eviction_step, timed_absorption
from thoughtcache.sampler.draw.drawing import Drawing
from thoughtcache.sampler.events import Event, Evicted, Evicting, Finished, Started, Tokens
from thoughtcache.sampler.going_on import allow_going_on, goes_on, note_last
from thoughtcache.sampler.prompts import PromptStore
from thoughtcache.sampler.request import Request
from thoughtcache.sampler.sequence import RunningSequence, new_sequence
from thoughtcache.sampler.slots.kv_recorder import KVRecorder
from thoughtcache.sampler.slots.slot_cache import SlotCache, new_slots
from thoughtcache.sampler.slots.table import SlotTable
from thoughtcache.sampler.weights.direct_linears import direct_linears
from thoughtcache.sampler.weights.packed_linears import packed_linears, worth_packing

ROUNDS_BETWEEN_LOOKS = 16
"""Rounds between two looks at the device if it is a GPU; elsewhere looking costs nothing."""
_OPEN = "an engine samples inside its block only: with Engine(model, ...) as engine: ..."


class Engine:
    """Samples any number of requests with a fixed number of slots; requests come and go while it works.

    From when it is made until its block ends the weights must not change; inside the block the model is its own.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter; inside `disable_adapter()` the base model is sampled.
        num_slots: sequences decoded at once.
        window: resident thoughts of every sequence instead of the adapter's own: an integer, or None for the full
            cache. "prompt" has no meaning here.
        tokenizer: tokenizer of the model; its end-of-sequence token ends a sequence as those of the model do, and stop
            strings need it.
        max_prompt_tokens: room for prompts that is made at once; a longer prompt makes more when it comes.
        max_new_tokens: room for thoughts that is made at once; longer thoughts make more when they come.
        record_kv: where keys, values and entropies are recorded, "device" or "host"; None for no record.
        anchors: record the thought states after each eviction.
        compile: static shapes, and compiled decode and eviction steps.
        pack_weights: decode from packed copies of the weights on a CPU; not with compiled steps.
        stream: tell new tokens (`Tokens`) at every look at the device.
        on_event: called with every event when it happens; `step` returns them as well.
        timer: adds up the seconds of the phases inside "rollout"; with `compile`, "absorb" is part of "move".

    Raises:
        ValueError: if the model has no thought adapter, or if a value is out of range.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        *,
        num_slots: int,
        window: int | str | None = OWN_WINDOW,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_prompt_tokens: int = 0,
        max_new_tokens: int = 0,
        record_kv: Place | None = None,
        anchors: bool = True,
        compile: bool = False,
        pack_weights: bool = True,
        stream: bool = False,
        on_event: Callable[[Event], None] | None = None,
        timer: PhaseTimer | None = None,
    ) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1 sequence, got {num_slots}")
        if record_kv is not None:
            check_place(record_kv, "record_kv")
        self.policy = policy = open_policy(model)
        self.tokenizer, self.record_kv, self.anchors, self.stream = tokenizer, record_kv, anchors, stream
        self.compiled, self.on_event = compile, on_event
        self.phase: Callable[[str], AbstractContextManager[object]] = nullcontext if timer is None else timer.phase
        self.pack_weights = pack_weights and worth_packing(num_slots, max_new_tokens or None)
        self.settings = policy.tuner.thought_config.resolve_window(None, window)
        self.looks_every = ROUNDS_BETWEEN_LOOKS if policy.device.type == "cuda" else 1
        self.table = SlotTable(num_slots, policy.device)
        memory = policy.tuner.memory()
        self.cache: SlotCache = new_slots(
            policy.tuner,
            self.table,
            memory,
            timed_absorption(policy.tuner.window_rules(self.settings, memory), None if compile else timer),
            room=(max_prompt_tokens, max_new_tokens),
            static_shapes=compile,
        )
        self.drawing = Drawing(
            policy, self.table, num_tokens=max_new_tokens, with_entropies=record_kv is not None, reads=stream
        )
        self.move = eviction_step(compiled=compile, timer=timer)
        self.decode = DecodeStep(policy, compiled=compile)
        self.prompts = PromptStore(policy)
        self.pending: deque[RunningSequence] = deque()
        self.slots: list[RunningSequence | None] = [None] * num_slots
        self.counts: Integers = np.zeros(num_slots, np.int64)
        self.limits: Integers = np.zeros(num_slots, np.int64)
        # Made with the first hidden states, whose dtype it takes.
        self.hidden: Tensor | None = None
        self.table.own(self, "slots", initial=None)
        self.table.own(self, "counts", "limits", initial=0)
        self.table.own(self, "hidden")
        self.num_requests = self._rounds = 0
        self._expected = num_slots
        self._is_drained = False
        self._events: list[Event] = []
        self._block: ExitStack | None = None

    @torch.no_grad()
    def __enter__(self) -> Engine:
        with ExitStack() as block:
            tuner = self.policy.tuner
            block.enter_context(tuner.sampling())
            has_masks = self.cache.columns.num_groups > 1 or self.cache.blanks is not None
            if self.cache.log is not None or self.cache.reader.reads_attention or has_masks:
                block.enter_context(thought_attention(tuner.model.config))
            # A compiler follows the modules' own calls, and would take new ones for new code.
            if not self.compiled:
                if self.pack_weights:
                    block.enter_context(packed_linears(tuner.model, tuner.prefix))
                block.enter_context(direct_linears(tuner))
            self._block = block.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._block is not None
        block, self._block = self._block, None
        block.__exit__(kind, error, trace)

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self.pending and not self.cache.taken.any()

    def add(self, request: Request) -> int:
        """Let a request wait for a slot.

        Returns:
            Its number, which events carry.

        Raises:
            ValueError: if the model cannot sample it.
            RuntimeError: if `drain` was called before.
        """
        if self._is_drained:
            raise RuntimeError("this engine was told that no more requests come; make another one")
        allow_going_on(self, request)
        sequence = new_sequence(self.num_requests, request, self.policy, self.settings, self.tokenizer)
        self.num_requests += 1
        self.pending.append(sequence)
        self.prompts.wait(sequence.prompt)
        return sequence.request

    def abort(self, request: int) -> bool:
        """Forget the request of this number, whether it waits or runs; its slot is free at once.

        Returns:
            Whether it was there; it may have finished before.
        """
        for sequence in self.pending:
            if sequence.request == request:
                self.pending.remove(sequence)
                self.prompts.forget(sequence.prompt)
                return True
        for slot, running in enumerate(self.slots):
            if running is not None and running.request == request:
                self.table.reset([slot])
                return True
        return False

    def drain(self) -> None:
        """No more requests come: slots that become free are dropped, so that a step costs what is left."""
        self._is_drained = True
        self._expected = 0

    def expect(self, num_requests: int) -> None:
        """At most so many requests are there at once from now on: free slots beyond are dropped.

        Further requests may still be added, each when another one is over.
        """
        self._expected = min(num_requests, self._expected)

    def run(self, requests: Iterable[Request]) -> list[Rollout]:
        """Sample these requests and nothing after them.

        Returns:
            One rollout per request, in order.
        """
        numbers = [self.add(request) for request in requests]
        self.drain()
        found: dict[int, Rollout] = {}
        with self:
            while not self.is_idle:
                found.update((event.request, event.rollout) for event in self.step() if isinstance(event, Finished))
        return [found[number] for number in numbers]

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One round; what happened in it, in order.

        Raises:
            RuntimeError: outside of the engine's block.
            FloatingPointError: if a log-probability is not finite.
        """
        if self._block is None:
            raise RuntimeError(_OPEN)
        self._events = []
        self._admit()
        if self.cache.taken.any():
            with self.phase("draw"):
                self._draw()
            self._rounds += 1
            self._harvest(look=self._rounds % self.looks_every == 0)
        if self.cache.taken.any():
            self._shrink()
            due = self.cache.due()
            if due.size:
                with self.phase("evict"):
                    self._evict(due)
            with self.phase("decode"):
                self.hidden = self.decode(self.cache, self.drawing.last)
            with self.phase("hear"):
                self.cache.finish_step()
        return self._events

    def tell(self, event: Event) -> None:
        """Add an event to those of this round."""
        self._events.append(event)
        if self.on_event is not None:
            self.on_event(event)

    def _admit(self) -> None:
        """Fill free slots; a prompt with several completions is processed once."""
        slots = np.flatnonzero(~self.cache.taken)[: len(self.pending)].tolist()
        if not slots:
            return
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        new = [self.pending.popleft() for _ in slots]
        for slot, sequence in zip(slots, new, strict=True):
            if self.record_kv is not None:
                sequence.recorder = KVRecorder(self.cache.device, on_host=self.record_kv == "host")
            self.slots[slot], self.limits[slot] = sequence, sequence.rules.max_new_tokens
            by_prompt.setdefault(sequence.prompt, []).append(slot)
        self.cache.reserve([(len(one.prompt), one.rules.max_new_tokens) for one in new])
        seeds = {slot: sequence.settings.seed for slot, sequence in zip(slots, new, strict=True)}
        with self.phase("prefill"):
            entries = self.prompts.take(list(by_prompt), [len(places) for places in by_prompt.values()])
        for places, entry in zip(by_prompt.values(), entries, strict=True):
            self.cache.fill(places, entry.past, [seeds[slot] for slot in places])
            if self.hidden is None:
                self.hidden = entry.hidden.new_zeros(len(self.slots), entry.hidden.shape[0])
            self.hidden[places] = entry.hidden
        self.drawing.admit(slots, [one.rules for one in new], [one.prompt for one in new])
        for sequence in new:
            self.tell(Started(request=sequence.request))

    def _draw(self) -> None:
        """One token in every slot; free slots draw one that nobody reads."""
        assert self.hidden is not None
        self.drawing.draw(self.hidden)
        self.counts += self.cache.taken

    def _harvest(self, *, look: bool) -> None:
        """Take out the sequences that are over."""
        over = (self.counts == self.limits) & self.cache.taken
        if look or over.any():
            over |= self.drawing.ended(self.counts * self.cache.taken) & self.cache.taken
            if self.stream:
                self._stream(over)
        free: list[int] = []
        for slot in np.flatnonzero(over).tolist():
            sequence, count = self.slots[slot], int(self.counts[slot])
            assert sequence is not None
            rollout = sequence.rollout(self.cache, slot, count, self.drawing.take(slot, count))
            if self.stream and sequence.num_told < len(rollout.token_ids):
                rest = tuple(rollout.token_ids[sequence.num_told :])
                self.tell(Tokens(request=sequence.request, token_ids=rest))
            self.tell(Finished(request=sequence.request, rollout=rollout))
            if not goes_on(self, slot, sequence, rollout):
                free.append(slot)
        self.table.reset(free)

    def _stream(self, over: np.typing.NDArray[np.bool_]) -> None:
        """Tell the new tokens of the sequences that go on."""
        for sequence, read, is_over in zip(self.slots, self.drawing.read, over, strict=True):
            if sequence is not None and not is_over and len(read) > sequence.num_told:
                self.tell(Tokens(request=sequence.request, token_ids=tuple(read[sequence.num_told :])))
                sequence.num_told = len(read)

    def _shrink(self) -> None:
        """Nobody waits any more and half of the slots will stay free: drop those. Static shapes keep them."""
        active = np.flatnonzero(self.cache.taken)
        needed, free = max(len(active), self._expected), np.flatnonzero(~self.cache.taken)
        if self.pending or self.compiled or 2 * needed > len(self.slots):
            return
        self.table.keep(np.sort(np.concatenate([active, free[: needed - len(active)]])))
        self.drawing.regroup()

    def _evict(self, due: Integers) -> None:
        """Evict and absorb in these slots, and record it."""
        note_last(self, due)
        sequences = [self.slots[slot] for slot in due.tolist()]
        numbers = tuple(sequence.request for sequence in sequences if sequence is not None)
        self.tell(Evicting(requests=numbers))
        for slot, sequence in zip(due.tolist(), sequences, strict=True):
            if sequence is not None and sequence.recorder is not None:
                sequence.recorder.copy_new(self.cache, slot, len(sequence.prompt) + int(self.counts[slot]) - 1)
        for event in self.cache.evict(due, self.move):
            states = torch.stack(event.states, dim=1) if self.anchors and event.states else None
            for place, slot in enumerate(event.slots):
                evicted = self.slots[slot]
                assert evicted is not None
                evicted.note_eviction(
                    None if event.chosen is None else event.chosen[place], None if states is None else states[place]
                )
        self.tell(Evicted(requests=numbers))
