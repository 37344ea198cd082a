"""Binds the thought states that the adapter uses during one forward pass.

Attention and MLP modules have no argument for a state, so it is bound around the forward: set on entry, removed on
exit, never kept. One binding is shared by all adapted linears of a model, and each thread sees its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor


class StateBinding(threading.local):
    """The states of the forward pass that this thread runs: one [B or 1, G, R] tensor per decoder layer.

    Attributes:
        states: None outside of a forward pass, and for plain LoRA (the identity).
        wanted: what the caller of the running forward pass reads of it; None where only the decoder was called.
    """

    def __init__(self) -> None:
        self.states: list[Tensor] | None = None
        self.wanted: Wanted | None = None
        self._attention: AbstractContextManager[None] | None = None

    def __reduce__(self) -> tuple[type[StateBinding], tuple[()]]:
        """A copy of the model gets a binding of its own, with nothing bound."""
        return StateBinding, ()

    def change_attention(self, block: AbstractContextManager[None] | None) -> None:
        """Leave the block in which this thread's forward pass has another attention, if any, and enter another."""
        before, self._attention = self._attention, block
        if before is not None:
            before.__exit__(None, None, None)
        if block is not None:
            block.__enter__()

    @contextmanager
    def bound(self, states: list[Tensor] | None) -> Iterator[None]:
        """Use `states` inside the block; what was bound before is restored on exit."""
        before, self.states = self.states, states
        try:
            yield
        finally:
            self.states = before


class Wanted:
    """The arguments of a causal model that say which of its logits are read.

    Args:
        logits_to_keep: how many of the last positions have logits, or which places; 0 means all.
        labels: [B, T] targets of the loss, -100 where there is none; or None.
    """

    def __init__(self, logits_to_keep: int | Tensor, labels: Tensor | None) -> None:
        self.logits_to_keep = logits_to_keep
        self.labels = labels

    def num_scored(self, num_tokens: int) -> int:
        """Positions from the first one whose logits are read to the last of `num_tokens`; reads the device."""
        kept = self.logits_to_keep
        if isinstance(kept, Tensor):
            return num_tokens - int(kept.min()) if kept.numel() else 1
        if kept:
            return min(kept, num_tokens)
        if self.labels is None:
            return num_tokens
        columns = (self.labels != -100).any(dim=0).nonzero()
        # The logits of a position are for the next token: those of the first label stand one position before it.
        return min(num_tokens - int(columns[0]) + 1, num_tokens) if len(columns) else 1
