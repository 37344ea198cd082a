"""The interface of what is learned from tokens before they leave the cache, for caches, records, anchors and replay.

They know a state per layer, a tensor [B or 1, ...] of any shape, and the functions below. A forward pass reads the
states by the memory's `StateReader`: in the adapted linears or in attention. The state inside the LoRA adapter is the
first memory (`adapter_state.py`), the one in attention space the second (`attention_memory.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from thoughtcache.cache.base import StateReader, States
from thoughtcache.cache.window_rules import AbsorbFn

NaiveToken = tuple[Tensor, Tensor, int]
"""A token in one head: key [D] as cached, value [D], and the position at which the key stands."""


class Memory(ABC):
    """The states of a model's layers under the weights of the moment."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Everything learnable that makes the states."""

    @abstractmethod
    def initial_states(self) -> States:
        """[1, ...] per layer before any eviction, with gradient; None where there is no state."""

    @abstractmethod
    def absorber(self) -> AbsorbFn | None:
        """The function that makes a layer's next state of the keys and values that leave; None if nothing absorbs."""

    @property
    def absorbs_positions(self) -> bool:
        """Whether what is absorbed depends on where the leaving tokens stood."""
        return False

    @abstractmethod
    def reader(self) -> StateReader:
        """What forward passes read of the states, under the weights of the moment."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes of the states of all layers of one sequence; 0 where no eviction changes them."""

    @abstractmethod
    def naive_initial_states(self) -> list[Tensor] | None:
        """The states of `initial_states` for one sequence, [...] per layer, by loops."""

    @abstractmethod
    def naive_absorb(self, layer_index: int, S: Tensor, leaving: list[list[NaiveToken | None]]) -> Tensor:
        """The state of one layer of one sequence after tokens [m][H] have left, by loops; None in a head: nothing."""

    @abstractmethod
    def naive_reader(self) -> StateReader:
        """The same as `reader` for one sequence and one token, by loops."""
