"""The rules by which the tokens of a sequence are drawn, and the slots that are drawn in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thoughtcache.policy.token_logprobs import scored_distribution
from thoughtcache.records import TokenFilters
from thoughtcache.sampler.draw.filters import filtered_log_softmax
from thoughtcache.sampler.draw.stop_sequences import find_end
from thoughtcache.sampler.draw.stop_strings import StopStrings


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawRules:
    """The rules by which one sequence is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token, which is scored at 1.
        filters: what makes the distribution that is drawn from another than the scored one.
        max_new_tokens: bound on its tokens.
        seed: (seed, row) of its uniform numbers.
        stop_ids: tokens that end it.
        stop_strings: texts that end it, or None.
        stop_sequences: token sequences that end it.
        given_tokens: the first tokens, or all, that are taken instead of drawn; or None.
    """

    temperature: float
    filters: TokenFilters
    max_new_tokens: int
    seed: tuple[int, int]
    stop_ids: tuple[int, ...]
    stop_strings: StopStrings | None = None
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    given_tokens: tuple[int, ...] | None = None

    @property
    def distribution(self) -> tuple[float, TokenFilters, tuple[int, ...]]:
        """The settings that decide the distribution; sequences that share them are drawn together."""
        return self.temperature, self.filters, self.stop_ids if self.filters.min_new_tokens else ()

    @property
    def needs_reading(self) -> bool:
        """Whether its end shows only to who reads its tokens one after the other."""
        return self.stop_strings is not None or bool(self.stop_sequences)

    def find_end(self, tokens: Sequence[int], start: int) -> int | None:
        """Tokens up to the first one, from number `start` on, that completes a stop string or sequence; or None."""
        ends = (
            None if self.stop_strings is None else self.stop_strings.find(tokens, start),
            find_end(tokens, self.stop_sequences, start),
        )
        return min((end for end in ends if end is not None), default=None)


class DrawGroup:
    """Slots whose sequences share their distribution.

    Args:
        rules: rules of any of these sequences.
        rows: [n] the slots, on the device; None means all.
        vocabulary: V.
        device: device of the logits.

    Attributes:
        is_stop: [V] the stop tokens, where some must not come yet; None elsewhere.
    """

    def __init__(self, rules: DrawRules, rows: Int[Tensor, " n"] | None, vocabulary: int, device: torch.device) -> None:
        self.rows = rows
        self.filters = rules.filters
        self.greedy = rules.temperature == 0
        self.temperature = rules.temperature or 1.0
        self.is_stop: Bool[Tensor, " V"] | None = None
        if rules.filters.min_new_tokens > 0:
            self.is_stop = torch.isin(
                torch.arange(vocabulary, device=device), torch.tensor(rules.stop_ids, dtype=torch.long, device=device)
            )

    def of(self, tensor: Tensor) -> Tensor:
        """The rows of this group."""
        return tensor if self.rows is None else tensor[self.rows]

    def put(self, target: Tensor, values: Tensor) -> Tensor:
        """`target` with these values in the rows of this group."""
        return values if self.rows is None else target.index_copy(0, self.rows, values)

    def distributions(
        self, logits: Float[Tensor, "n V"], counts: Int[Tensor, "n 1"], seen: Bool[Tensor, "n V"] | None
    ) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n V"]]:
        """The scored distribution and the one to draw from, the same tensor where no filter is on.

        Args:
            logits: logits of these rows, in at least fp32.
            counts: tokens drawn so far.
            seen: tokens of prompt and thoughts; read with a repetition penalty.
        """
        scored = scored_distribution(logits, self.temperature)
        if not self.filters.active:
            return scored, scored
        barred = None if self.is_stop is None else (counts < self.filters.min_new_tokens) & self.is_stop
        penalised = seen if self.filters.repetition_penalty != 1.0 else None
        return scored, filtered_log_softmax(logits, self.filters, self.temperature, seen=penalised, barred=barred)


def draw_groups(rules: Sequence[DrawRules | None], vocabulary: int, device: torch.device) -> list[DrawGroup]:
    """The slots by their distribution. Free slots (None) join the first group; nobody reads what they draw.

    Args:
        rules: rules of the sequence in every slot.
        vocabulary: V.
        device: device of the logits.
    """
    slots_of: dict[object, list[int]] = {}
    for slot, rule in enumerate(rules):
        if rule is not None:
            slots_of.setdefault(rule.distribution, []).append(slot)
    if not slots_of:
        return []
    free = [slot for slot, rule in enumerate(rules) if rule is None]
    groups = []
    for slots in slots_of.values():
        first = rules[slots[0]]
        assert first is not None
        rows = None if len(slots_of) == 1 else torch.tensor(slots + free, device=device)
        groups.append(DrawGroup(first, rows, vocabulary, device))
        free = []
    return groups
