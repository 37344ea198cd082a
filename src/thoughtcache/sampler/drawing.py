"""Drawing tokens in slots: distributions, uniform numbers, what was drawn and which sequences are over.

All that grows with the tokens of a sequence, other than its cache, is here: one row of every buffer per slot. Drawing
never waits for the device. `ended` does, and with stop strings it reads the tokens as well; whoever drives decides how
often (`engine.py`). What a slot draws after its end is cut off by `take`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from thoughtcache.cache.host_integers import Integers
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.token_ids import vocabulary_size
from thoughtcache.policy.token_logprobs import entropy_of, head_logits, scaled_log_softmax, scored_distribution
from thoughtcache.records import FinishReason, SamplingSettings
from thoughtcache.sampler.filters import filtered_log_softmax
from thoughtcache.sampler.inverse_cdf import sample_tokens, uniform_numbers
from thoughtcache.sampler.stop_strings import StopStrings


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The thoughts of one sequence, cut at its end; fields as in `Rollout`."""

    token_ids: list[int]
    logprobs: Float[Tensor, " T"]
    sampled_logprobs: Float[Tensor, " T"] | None
    entropies: Float[Tensor, " T"] | None
    finish_reason: FinishReason


class Drawing:
    """What the slots have drawn.

    Args:
        policy: the parts of the model.
        settings: temperature, length and filters.
        stop_ids: tokens that end a sequence.
        stop_strings: texts that do, or None.
        num_slots: sequences at once.
        with_entropies: record the entropy of every scored distribution.

    Attributes:
        tokens: [slots, T] what was drawn.
        counts: [slots, 1] how many tokens each slot has drawn; counted on the device, so that a draw sends it nothing.
        last: [slots, 1] the token that each slot has drawn last.
    """

    def __init__(
        self,
        policy: PolicyHandle,
        settings: SamplingSettings,
        stop_ids: Sequence[int],
        stop_strings: StopStrings | None,
        *,
        num_slots: int,
        with_entropies: bool,
    ) -> None:
        self.policy, self.settings, self.stop_strings = policy, settings, stop_strings
        self.with_entropies = with_entropies
        device, shape = policy.device, (num_slots, settings.max_new_tokens)
        self.stops = torch.tensor(stop_ids, device=device, dtype=torch.long)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.counts = torch.zeros(num_slots, 1, dtype=torch.long, device=device)
        self.last = torch.zeros(num_slots, 1, dtype=torch.long, device=device)
        self.uniform = torch.zeros(shape, dtype=torch.float64, device=device)
        self.stopped = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.seen: Bool[Tensor, "S V"] | None = None
        vocabulary = vocabulary_size(policy)
        if settings.filters.repetition_penalty != 1.0:
            self.seen = torch.zeros(num_slots, vocabulary, dtype=torch.bool, device=device)
        self.is_stop: Bool[Tensor, " V"] | None = None
        if settings.filters.min_new_tokens > 0:
            self.is_stop = torch.isin(torch.arange(vocabulary, device=device), self.stops)
        # Made with the first distribution, whose dtype they take.
        self.logprobs: Tensor | None = None
        self.sampled_logprobs: Tensor | None = None
        self.entropies: Tensor | None = None
        # On the host, for stop strings: the tokens that were looked at, and where the text ended.
        self.read: list[list[int]] = [[] for _ in range(num_slots)]
        self.text_ends: list[int | None] = [None] * num_slots

    def admit(self, slots: list[int], seeds: Sequence[tuple[int, int]], prompts: Sequence[Sequence[int]]) -> None:
        """Begin sequences in free slots.

        Args:
            slots: where.
            seeds: (seed, row) of the uniform numbers of each sequence.
            prompts: their tokens.
        """
        count, device = self.settings.max_new_tokens, self.tokens.device
        self.uniform[slots] = torch.cat(
            [uniform_numbers(seed, range(row, row + 1), count, device) for seed, row in seeds]
        )
        self.stopped[slots], self.counts[slots] = False, 0
        for slot in slots:
            self.read[slot], self.text_ends[slot] = [], None
        if self.seen is not None:
            self.seen[slots] = False
            for slot, prompt in zip(slots, prompts, strict=True):
                self.seen[slot, torch.tensor(prompt, device=device)] = True

    def draw(self, hidden: Float[Tensor, "S d"]) -> None:
        """One token in every slot; free slots draw one that nobody reads.

        Args:
            hidden: of the last token of every slot.
        """
        # A free slot goes on counting; it writes over its own last token.
        at = self.counts.clamp_max(self.tokens.shape[1] - 1)
        scored, sampled = self._distributions(hidden, at)
        chosen = sample_tokens(sampled, self.uniform.gather(1, at).squeeze(1), greedy=self.settings.temperature == 0)
        if self.logprobs is None:
            self.logprobs = torch.zeros(self.tokens.shape, dtype=scored.dtype, device=scored.device)
            self.sampled_logprobs = None if sampled is scored else torch.zeros_like(self.logprobs)
            self.entropies = torch.zeros_like(self.logprobs) if self.with_entropies else None
        column = chosen.unsqueeze(1)
        self.tokens.scatter_(1, at, column)
        self.logprobs.scatter_(1, at, scored.gather(1, column))
        if self.sampled_logprobs is not None:
            self.sampled_logprobs.scatter_(1, at, sampled.gather(1, column))
        if self.entropies is not None:
            self.entropies.scatter_(1, at, entropy_of(scored).unsqueeze(1))
        if self.seen is not None:
            self.seen.scatter_(1, column, True)
        self.stopped |= (column == self.stops).any(dim=1)  # `isin` would sort many stops, and wait for the device
        self.last = column
        self.counts += 1

    def _distributions(self, hidden: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """[S, V] the scored distribution and the one to draw from, the same tensor where no filter is on."""
        settings = self.settings
        if not settings.filters.active:
            scored = scaled_log_softmax(hidden, self.policy.head, settings.scoring_temperature)
            return scored, scored
        logits = head_logits(hidden, self.policy.head)
        barred = None if self.is_stop is None else (at < settings.filters.min_new_tokens) & self.is_stop
        sampled = filtered_log_softmax(
            logits, settings.filters, settings.scoring_temperature, seen=self.seen, barred=barred
        )
        return scored_distribution(logits, settings.scoring_temperature), sampled

    def ended(self, counts: Integers) -> NDArray[np.bool_]:
        """Which slots hold a stop token or a stop string; waits for the device.

        Args:
            counts: tokens drawn by the sequence in each slot, 0 for a free slot.
        """
        stopped: NDArray[np.bool_] = self.stopped.cpu().numpy()
        if self.stop_strings is None:
            return stopped
        self._read_text(self.stop_strings, counts.tolist())
        return np.logical_or(stopped, [end is not None for end in self.text_ends])

    def _read_text(self, stop_strings: StopStrings, counts: Sequence[int]) -> None:
        """Look for stop strings in what was drawn since the last look."""
        new = [max(0, count - len(read)) for count, read in zip(counts, self.read, strict=True)]
        first = torch.tensor([len(read) for read in self.read], device=self.tokens.device).unsqueeze(1)
        columns = first + torch.arange(max(new), device=self.tokens.device)
        recent = self.tokens.gather(1, columns.clamp_max(self.tokens.shape[1] - 1)).tolist()
        for slot, read in enumerate(self.read):
            start = max(len(read), self.settings.filters.min_new_tokens)
            read += recent[slot][: new[slot]]
            if new[slot] and self.text_ends[slot] is None:
                self.text_ends[slot] = stop_strings.find(read, start)

    def take(self, slot: int, count: int) -> Drawn:
        """The sequence in a slot after a look at its end.

        Args:
            slot: where it is.
            count: tokens that it has drawn.

        Raises:
            FloatingPointError: if a log-probability is not finite.
        """
        assert self.logprobs is not None
        tokens = self.tokens[slot, :count]
        ends = torch.isin(tokens, self.stops).tolist()
        length = min(ends.index(True) + 1 if any(ends) else count, self.text_ends[slot] or count)
        over = any(ends) or self.text_ends[slot] is not None
        finite = torch.isfinite(self.logprobs[slot, :length]).tolist()
        if not all(finite):
            raise FloatingPointError(
                f"the log-probability of sampled token {finite.index(False)} of a sequence is not finite, so the "
                "logits are not; look for diverged adapter weights, or load the model in another dtype than float16"
            )
        return Drawn(
            token_ids=tokens[:length].tolist(),
            logprobs=self.logprobs[slot, :length].clone(),
            sampled_logprobs=None if self.sampled_logprobs is None else self.sampled_logprobs[slot, :length].clone(),
            entropies=None if self.entropies is None else self.entropies[slot, :length].clone(),
            finish_reason="stop" if over else "length",
        )

    def keep(self, slots: Sequence[int], rows: Int[Tensor, " n"]) -> None:
        """Drop all other slots; `rows` are the same numbers on the device."""
        assert self.logprobs is not None
        self.tokens, self.uniform, self.stopped = self.tokens[rows], self.uniform[rows], self.stopped[rows]
        self.counts, self.last = self.counts[rows], self.last[rows]
        self.logprobs = self.logprobs[rows]
        self.sampled_logprobs = None if self.sampled_logprobs is None else self.sampled_logprobs[rows]
        self.entropies = None if self.entropies is None else self.entropies[rows]
        self.seen = None if self.seen is None else self.seen[rows]
        self.read = [self.read[slot] for slot in slots]
        self.text_ends = [self.text_ends[slot] for slot in slots]
