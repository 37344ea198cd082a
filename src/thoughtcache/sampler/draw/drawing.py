"""Drawing tokens in slots: distributions, uniform numbers, what was drawn and which sequences are over.

All that grows with the tokens of a sequence, other than its cache, is here. Drawing never waits for the device. `ended`
does, and with stop strings or sequences it reads the tokens as well; whoever drives decides how often (`engine.py`).
What a slot draws after its end is cut off by `take`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from thoughtcache.cache.host_integers import Integers, to_device
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.token_ids import vocabulary_size
from thoughtcache.policy.token_logprobs import entropy_of, head_logits
from thoughtcache.records import FinishReason
from thoughtcache.sampler.draw.inverse_cdf import sample_tokens, uniform_numbers
from thoughtcache.sampler.draw.rules import DrawGroup, DrawRules, draw_groups
from thoughtcache.sampler.slots.table import SlotTable

NOTHING = -1
"""Stands where there is no stop token and no given one; no token has this number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The thoughts of one sequence, cut at its end; fields as in `Rollout`."""

    token_ids: list[int]
    logprobs: Float[Tensor, " T"]
    sampled_logprobs: Float[Tensor, " T"] | None
    entropies: Float[Tensor, " T"] | None
    finish_reason: FinishReason


class Drawing:
    """Draws tokens in all slots, and keeps what was drawn.

    Args:
        policy: the parts of the model.
        table: knows all that has a row per slot.
        num_tokens: T, room for the thoughts of a slot; `admit` makes more where a sequence needs it.
        with_entropies: record the entropy of every scored distribution.
        reads: read the tokens at every look, whether a sequence needs it for its end or not.

    Attributes:
        tokens: [slots, T] what was drawn.
        counts: [slots, 1] how many tokens each slot has drawn; counted on the device, so that a draw sends it nothing.
        last: [slots, 1] the token that each slot has drawn last.
        stops: [slots, n] the stop tokens of each sequence.
        rules: how the sequence in each slot is drawn; None for a free slot.
        read: the tokens of each slot that were looked at, on the host.
        text_ends: where a stop string or sequence has ended each slot.
    """

    def __init__(
        self, policy: PolicyHandle, table: SlotTable, *, num_tokens: int, with_entropies: bool, reads: bool = False
    ) -> None:
        self.policy, self.table, self.with_entropies, self.reads = policy, table, with_entropies, reads
        self.vocabulary = vocabulary_size(policy)
        num_slots, device = table.num_slots, policy.device
        shape = num_slots, num_tokens
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.uniform = torch.zeros(shape, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_slots, 1, dtype=torch.long, device=device)
        self.last = torch.zeros(num_slots, 1, dtype=torch.long, device=device)
        self.stops = torch.full((num_slots, 1), NOTHING, device=device)
        self.stopped = torch.zeros(num_slots, dtype=torch.bool, device=device)
        # Made when the first sequence needs them.
        self.seen: Bool[Tensor, "S V"] | None = None
        self.given: Tensor | None = None
        # Made with the first distribution, whose dtype they take; the second when the first filter comes.
        self.logprobs: Tensor | None = None
        self.sampled_logprobs: Tensor | None = None
        self.entropies: Tensor | None = None
        self.rules: list[DrawRules | None] = [None] * num_slots
        self.read: list[list[int]] = [[] for _ in range(num_slots)]
        self.text_ends: list[int | None] = [None] * num_slots
        self.groups: list[DrawGroup] = []
        table.own(self, "tokens", "uniform", "last", "logprobs", "sampled_logprobs", "entropies")
        table.own(self, "counts", "stopped", "seen", initial=0)
        table.own(self, "stops", "given", initial=NOTHING)
        table.own(self, "rules", "text_ends", initial=None)
        table.own(self, "read", initial=list)

    def admit(self, slots: list[int], rules: Sequence[DrawRules], prompts: Sequence[Sequence[int]]) -> None:
        """Begin sequences in free slots.

        Args:
            slots: slots in which they begin.
            rules: how they are drawn.
            prompts: their tokens.
        """
        self._reserve(max(rule.max_new_tokens for rule in rules), max(len(rule.stop_ids) for rule in rules))
        rows, device = to_device(np.array(slots), self.tokens.device), self.tokens.device
        # One transfer for all sequences that begin together.
        uniform = torch.zeros(len(slots), self.tokens.shape[1], dtype=torch.float64)
        for place, rule in enumerate(rules):
            if len(rule.given_tokens or ()) < rule.max_new_tokens:
                (seed, row), count = rule.seed, rule.max_new_tokens
                uniform[place, :count] = uniform_numbers(seed, range(row, row + 1), count, uniform.device)[0]
        self.uniform[rows] = uniform.to(device)
        self.stops[rows] = _rows([rule.stop_ids for rule in rules], self.stops.shape[1]).to(device)
        if any(rule.given_tokens is not None for rule in rules):
            if self.given is None:
                self.given = torch.full_like(self.tokens, NOTHING)
            self.given[rows] = _rows([rule.given_tokens or () for rule in rules], self.given.shape[1]).to(device)
        for slot, rule, prompt in zip(slots, rules, prompts, strict=True):
            if rule.filters.repetition_penalty != 1.0:
                if self.seen is None:
                    self.seen = torch.zeros(len(self.rules), self.vocabulary, dtype=torch.bool, device=device)
                self.seen[slot] = False  # a free slot goes on drawing
                self.seen[slot, torch.tensor(prompt, device=device)] = True
            self.rules[slot] = rule
        self.counts[rows] = 0
        self.regroup()

    def regroup(self) -> None:
        """Find the slots that are drawn together, after sequences have come or slots were dropped."""
        self.groups = draw_groups(self.rules, self.vocabulary, self.tokens.device)

    def _reserve(self, num_tokens: int, num_stops: int) -> None:
        more = num_tokens - self.tokens.shape[1]
        if more > 0:
            for name in ("tokens", "uniform", "logprobs", "sampled_logprobs", "entropies"):
                value = getattr(self, name)
                if value is not None:
                    setattr(self, name, pad(value, (0, more)))
            self.given = None if self.given is None else pad(self.given, (0, more), value=NOTHING)
        if num_stops > self.stops.shape[1]:
            self.stops = pad(self.stops, (0, num_stops - self.stops.shape[1]), value=NOTHING)

    def draw(self, hidden: Float[Tensor, "S d"]) -> None:
        """One token in every slot; free slots draw one that nobody reads.

        Args:
            hidden: hidden states of the last token of every slot.
        """
        # A free slot goes on counting; it writes over its own last token.
        at = self.counts.clamp_max(self.tokens.shape[1] - 1)
        logits = head_logits(hidden, self.policy.head)
        if self.logprobs is None:
            self.logprobs = torch.zeros(self.tokens.shape, dtype=logits.dtype, device=logits.device)
            self.entropies = torch.zeros_like(self.logprobs) if self.with_entropies else None
        if self.sampled_logprobs is None and any(group.filters.active for group in self.groups):
            self.sampled_logprobs = torch.zeros_like(self.logprobs)
        uniform = self.uniform.gather(1, at)
        given = None if self.given is None else self.given.gather(1, at)
        column, scores = self.last, logits.new_zeros(len(logits), 1)
        sampled_scores = entropies = scores
        for number, group in enumerate(self.groups, 1):
            seen = None if self.seen is None else group.of(self.seen)
            part = group.of(logits)
            if number == len(self.groups):
                del logits  # the distributions, which are of the same size, need the room
            scored, sampled = group.distributions(part, group.of(at), seen)
            del part
            chosen = sample_tokens(sampled, group.of(uniform).squeeze(1), greedy=group.greedy).unsqueeze(1)
            if given is not None:
                taken = group.of(given)
                chosen = torch.where(taken == NOTHING, chosen, taken)
            column, scores = group.put(column, chosen), group.put(scores, scored.gather(1, chosen))
            if self.sampled_logprobs is not None:
                sampled_scores = group.put(sampled_scores, sampled.gather(1, chosen))
            if self.entropies is not None:
                entropies = group.put(entropies, entropy_of(scored).unsqueeze(1))
        self.tokens.scatter_(1, at, column)
        self.logprobs.scatter_(1, at, scores)
        if self.sampled_logprobs is not None:
            self.sampled_logprobs.scatter_(1, at, sampled_scores)
        if self.entropies is not None:
            self.entropies.scatter_(1, at, entropies)
        if self.seen is not None:
            self.seen.scatter_(1, column, True)
        is_stop = (column == self.stops).any(dim=1)  # `isin` would sort many stops, and wait for the device
        self.stopped |= is_stop if given is None else is_stop & (given == NOTHING).squeeze(1)
        self.last = column
        self.counts += 1

    def ended(self, counts: Integers) -> NDArray[np.bool_]:
        """Which slots hold a stop token, string or sequence; waits for the device.

        Args:
            counts: tokens drawn by the sequence in each slot, 0 for a free slot.
        """
        stopped: NDArray[np.bool_] = self.stopped.cpu().numpy()
        if not self.reads and not any(rule is not None and rule.needs_reading for rule in self.rules):
            return stopped
        self._read(counts.tolist())
        return np.logical_or(stopped, [end is not None for end in self.text_ends])

    def _read(self, counts: Sequence[int]) -> None:
        """Read what was drawn since the last look, and look for stop strings and sequences in it."""
        new = [max(0, count - len(read)) for count, read in zip(counts, self.read, strict=True)]
        first = torch.tensor([len(read) for read in self.read], device=self.tokens.device).unsqueeze(1)
        columns = first + torch.arange(max(new), device=self.tokens.device)
        recent = self.tokens.gather(1, columns.clamp_max(self.tokens.shape[1] - 1)).tolist()
        for slot, (read, rule) in enumerate(zip(self.read, self.rules, strict=True)):
            start = len(read)
            read += recent[slot][: new[slot]]
            if new[slot] and rule is not None and rule.needs_reading and self.text_ends[slot] is None:
                start = max(start, rule.filters.min_new_tokens, len(rule.given_tokens or ()))
                self.text_ends[slot] = rule.find_end(read, start)

    def take(self, slot: int, count: int) -> Drawn:
        """The sequence in a slot after a look at its end.

        Args:
            slot: slot in which it is.
            count: tokens that it has drawn.

        Raises:
            FloatingPointError: if a log-probability is not finite.
        """
        rule = self.rules[slot]
        assert self.logprobs is not None
        assert rule is not None
        tokens = self.tokens[slot, :count]
        ends = torch.isin(tokens, self.stops[slot])
        ends[: len(rule.given_tokens or ())] = False
        length = min(int(ends.int().argmax()) + 1 if ends.any() else count, self.text_ends[slot] or count)
        over = bool(ends.any()) or self.text_ends[slot] is not None
        finite = torch.isfinite(self.logprobs[slot, :length]).tolist()
        if not all(finite):
            raise FloatingPointError(
                f"the log-probability of sampled token {finite.index(False)} of a sequence is not finite, so the "
                "logits are not; look for diverged adapter weights, or load the model in another dtype than float16"
            )
        filtered = self.sampled_logprobs if rule.filters.active else None
        return Drawn(
            token_ids=tokens[:length].tolist(),
            logprobs=self.logprobs[slot, :length].clone(),
            sampled_logprobs=None if filtered is None else filtered[slot, :length].clone(),
            entropies=None if self.entropies is None else self.entropies[slot, :length].clone(),
            finish_reason="stop" if over else "length",
        )


def _rows(tokens: Sequence[Sequence[int]], width: int) -> Int[Tensor, "n T"]:
    """Token ids of unequal number as rows, `NOTHING` behind each."""
    rows = torch.full((len(tokens), width), NOTHING)
    for row, ids in zip(rows, tokens, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    return rows
