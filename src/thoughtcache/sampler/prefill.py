"""Prompts through the backbone, each different prompt once, however many completions it will get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.cache.replay_cache import ReplayCache
from thoughtcache.policy.batch import pad_prompts
from thoughtcache.policy.handle import PolicyHandle

CHUNK_COLUMNS = 512
"""Prompt columns processed in one forward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefilled:
    """One prompt that was processed.

    Attributes:
        past: keys and values per layer, [H, P, D], views of the batch that was processed.
        hidden: [d] hidden state of its last token, a view as well.
    """

    past: list[tuple[Tensor, Tensor]]
    hidden: Tensor

    def copied(self) -> Prefilled:
        """A copy in memory of its own."""
        past = [(keys.clone(), values.clone()) for keys, values in self.past]
        return Prefilled(past=past, hidden=self.hidden.clone())


def prefill(policy: PolicyHandle, prompts: Sequence[tuple[int, ...]]) -> list[Prefilled]:
    """Process prompts in one padded batch, chunk by chunk of columns.

    Args:
        policy: the parts of the model.
        prompts: different prompts.
    """
    batch = pad_prompts(prompts, policy.device)
    width = batch.ids.shape[1]
    memory = policy.tuner.memory()
    cache = ReplayCache(policy.tuner.num_layers, None, 0, memory.initial_states(), memory.reader(), is_initial=True)
    for start in range(0, width, CHUNK_COLUMNS):
        stop = min(start + CHUNK_COLUMNS, width)
        output = policy.backbone(
            input_ids=batch.ids[:, start:stop],
            attention_mask=batch.leading_columns_mask(stop, len(prompts)),
            position_ids=batch.positions(start, stop),
            use_cache=True,
            **cache_keyword(policy.backbone, cache),
        )
    hidden = output.last_hidden_state[:, -1]
    return [
        Prefilled(
            past=[
                (layer.keys[row, :, width - len(ids) :], layer.values[row, :, width - len(ids) :])
                for layer in cache.layers
            ],
            hidden=hidden[row],
        )
        for row, ids in enumerate(prompts)
    ]
