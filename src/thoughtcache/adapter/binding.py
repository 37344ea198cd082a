"""Which thought states the adapter uses during one forward pass.

Attention and MLP modules have no argument for a state, so it is bound around the forward: set on entry, removed on
exit, never kept. One binding is shared by all adapted linears of a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class StateBinding:
    """The states of the forward pass that is running: one [B or 1, G, R] tensor per decoder layer.

    `states` is None outside of a forward pass, and for plain LoRA (the identity).
    """

    def __init__(self) -> None:
        self.states: list[Tensor] | None = None

    @contextmanager
    def bound(self, states: list[Tensor] | None) -> Iterator[None]:
        """Use `states` inside the block; what was bound before is restored on exit."""
        before, self.states = self.states, states
        try:
            yield
        finally:
            self.states = before
