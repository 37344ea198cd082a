"""A batch of rollouts as tensors: prompts left-padded, thoughts right-padded, exact positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from thoughtcache.cache.budgets import LayerBudgets, layer_budgets
from thoughtcache.cache.evict import leave_with_gaps
from thoughtcache.cache.head_columns import leaving_columns
from thoughtcache.policy.limits import num_before
from thoughtcache.records import Rollout, SamplingSettings

SHARED = (
    "window", "num_evicted", "eviction", "eviction_options", "budgets", "head_budgets", "positions", "temperature"
)  # fmt: skip
"""Settings that all rollouts of a batch have in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptBatch:
    """Left-padded prompts.

    Attributes:
        ids: [B, P] tokens, padding on the left.
        mask: [B, P] True on real tokens.
        lengths: [B] real prompt tokens of each row.
        padded: whether any row has padding.
        first: [B] position of the first thought: the prompt's length, unless a link goes on from another cache.
    """

    ids: Int[Tensor, "B P"]
    mask: Bool[Tensor, "B P"]
    lengths: Int[Tensor, " B"]
    padded: bool
    first: Int[Tensor, " B"]

    def positions(self, start: int, stop: int) -> Int[Tensor, "B n"]:
        """Exact positions of the columns `start..stop`, counted over [prompt | thoughts]; 0 on padding.

        Of a prompt that was not processed as a whole (`first`) they are right for its last column alone.
        """
        columns = torch.arange(start, stop, device=self.ids.device)
        offset = self.ids.shape[1] - self.first
        return (columns.unsqueeze(0) - offset.unsqueeze(1)).clamp_min(0)

    def leading_columns_mask(self, columns: int, rows: int) -> Int[Tensor, "R n"] | None:
        """2D mask over `columns` physical columns, [prompt | resident and new thoughts], of the first `rows` rows.

        The columns may end inside the prompt. None where no row is padded: no dense mask is needed.
        """
        if not self.padded:
            return None
        prompt = self.mask[:rows, :columns]
        return torch.cat([prompt, prompt.new_ones(rows, columns - prompt.shape[1])], dim=1).long()


def pad_prompts(prompt_ids: Sequence[Sequence[int]], device: torch.device) -> PromptBatch:
    """Left-pad prompts of unequal lengths with token 0 (masked).

    Raises:
        ValueError: if the batch or a prompt is empty.
    """
    if not prompt_ids:
        raise ValueError("no prompts were given; pass at least one list of token ids")
    lengths = [len(row) for row in prompt_ids]
    if min(lengths) == 0:
        raise ValueError(f"prompt {lengths.index(0)} is empty; every prompt needs at least one token")
    longest = max(lengths)
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in prompt_ids], dtype=torch.long)
    counts = torch.tensor(lengths)
    mask = torch.arange(longest).unsqueeze(0) >= (longest - counts).unsqueeze(1)
    on_device = counts.to(device)
    return PromptBatch(
        ids=ids.to(device), mask=mask.to(device), lengths=on_device, padded=min(lengths) < longest, first=on_device
    )


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """Rollouts that share settings, as tensors.

    Attributes:
        prompts: the left-padded prompts.
        token_ids: [B, T] thought tokens, right-padded with 0.
        mask: [B, T] True on real thought tokens.
        lengths: T of each row.
        rollouts: the records themselves.
        settings: the settings that all rows share.
    """

    prompts: PromptBatch
    token_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    lengths: list[int]
    rollouts: list[Rollout]
    settings: SamplingSettings

    @property
    def longest(self) -> int:
        """T of the longest row."""
        return self.token_ids.shape[1]

    @cached_property
    def budgets(self) -> LayerBudgets | None:
        """Resident thoughts of every layer; None for the full cache."""
        return layer_budgets(self.settings.cache)

    def recorded_slots(self, event: int, rows: int) -> Int[Tensor, "R M H E"] | None:
        """Recorded slots of one eviction of the first rows, where the records lie; None means the oldest.

        They are those of the M layers that were full (`LayerBudgets.place` is a layer's place among them). Rows that
        had ended get a valid dummy.
        """
        recorded = [r.evictions[event].slots if event < len(r.evictions) else None for r in self.rollouts[:rows]]
        example = next((slots for slots in recorded if slots is not None), None)
        if example is None:
            return None
        dummy = torch.arange(example.shape[-1], dtype=example.dtype, device=example.device).expand_as(example)
        return torch.stack([dummy if slots is None else slots for slots in recorded])

    @cached_property
    def leaving_thoughts(self) -> list[Int[Tensor, "B M H E"]]:
        """Which thoughts leave at every eviction, counted from 0, where evictions recorded slots; empty elsewhere.

        A function of the recorded slots alone, for those who ask where a chosen thought stood. It lies where the
        records do, in four bytes per evicted thought, layer and head.
        """
        budgets, found = self.budgets, list[Tensor]()
        kept: dict[int, Tensor] = {}  # by budget, of its layers; by layer, where budgets differ by head
        for event in range(max(len(rollout.evictions) for rollout in self.rollouts)):
            slots = self.recorded_slots(event, len(self.rollouts))
            if slots is None or budgets is None:
                return []
            if budgets.columns is not None:
                found.append(self._leaving_by_head(event, slots, kept))
                continue
            gone = torch.empty_like(slots, dtype=torch.int32)
            following = torch.tensor([budgets.smallest + event * budgets.num_evicted], device=slots.device)
            for size, places in budgets.due(event, slots.shape[1]).items():
                chosen = slots[:, places]
                if size not in kept:
                    first = torch.arange(size - budgets.num_evicted, dtype=torch.int32, device=slots.device)
                    kept[size] = first.expand(chosen.shape[0] * chosen.shape[1], chosen.shape[2], -1)
                left, kept[size] = leave_with_gaps(kept[size], following, chosen.flatten(0, 1))
                gone[:, places] = left.view(chosen.shape)
            found.append(gone)
        return found

    def _leaving_by_head(
        self, event: int, slots: Int[Tensor, "B M H E"], kept: dict[int, Tensor]
    ) -> Int[Tensor, "B M H E"]:
        """The same for one event where budgets differ by head; what it says of heads that are not full is nothing.

        Args:
            event: the event.
            slots: its recorded slots.
            kept: by layer, the thoughts in its columns behind the event before; it is brought up to date.
        """
        budgets = self.budgets
        assert budgets is not None
        assert budgets.columns is not None
        gone = torch.empty_like(slots, dtype=torch.int32)
        following = torch.tensor([budgets.smallest + event * budgets.num_evicted], device=slots.device)
        for layer, columns in enumerate(budgets.columns):
            if not budgets.is_due(layer, event):
                continue
            place, size = budgets.place(layer, event), columns.largest
            if layer not in kept:
                first = torch.arange(size - budgets.num_evicted, dtype=torch.int32, device=slots.device)
                shape = slots.shape[0], slots.shape[2], -1
                kept[layer] = (first + (min(columns.sizes) - size)).expand(shape)
            left = leaving_columns(columns, event, slots[:, place], size, slots)
            gone[:, place], kept[layer] = leave_with_gaps(kept[layer], following, left)
        return gone

    def inputs(self, start: int, stop: int) -> Int[Tensor, "B n"]:
        """Columns `start..stop` of [prompt | thoughts]."""
        return torch.cat([self.prompts.ids, self.token_ids], dim=1)[:, start:stop]


def batch_rollouts(rollouts: Sequence[Rollout], device: torch.device, *, may_continue: bool = False) -> RolloutBatch:
    """Collate rollouts.

    Args:
        rollouts: the records.
        device: where the tensors lie.
        may_continue: whether the caches that links go on from are there.

    Raises:
        ValueError: if the list or a rollout is empty, if rows have different cache or temperature settings, or if one
            is a link that goes on from a cache that is not there.
    """
    if not rollouts:
        raise ValueError("no rollouts were given")
    first = rollouts[0].settings
    for row, rollout in enumerate(rollouts):
        if not rollout.token_ids:
            raise ValueError(f"rollout {row} has no thought tokens")
        if rollout.continues is not None and not may_continue:
            raise ValueError(
                f"rollout {row} goes on from the cache of another link, which is not there; replay whole chains "
                "(replay_chains), or think in links that are encoded again"
            )
        theirs = rollout.settings
        for name in SHARED:
            if getattr(theirs, name) != getattr(first, name):
                raise ValueError(
                    f"rollout {row} was sampled with {name}={getattr(theirs, name)}, rollout 0 with "
                    f"{name}={getattr(first, name)}; replay them in separate calls"
                )
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    longest = max(lengths)
    tokens = torch.tensor(
        [rollout.token_ids + [0] * (longest - n) for rollout, n in zip(rollouts, lengths, strict=True)]
    )
    mask = torch.arange(longest).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)
    prompts = pad_prompts([rollout.prompt_ids for rollout in rollouts], device)
    if may_continue:
        prompts = replace(prompts, first=torch.tensor([num_before(rollout) for rollout in rollouts], device=device))
    return RolloutBatch(
        prompts=prompts,
        token_ids=tokens.to(device),
        mask=mask.to(device),
        lengths=lengths,
        rollouts=list(rollouts),
        settings=first,
    )
