"""A memory to which nothing is ever written: what the weights of an adapter do without its states."""

from __future__ import annotations

from torch import Tensor, nn

from thoughtcache.cache.base import StateReader, States
from thoughtcache.cache.window_rules import AbsorbFn
from thoughtcache.state.memory import Memory, NaiveToken


class Unwritten(Memory):
    """Another memory with its reads and its initial states, which stay for ever.

    Args:
        memory: the other one.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def parameters(self) -> list[nn.Parameter]:
        """Those of the other one."""
        return self.memory.parameters()

    def initial_states(self) -> States:
        """Those of the other one."""
        return self.memory.initial_states()

    def absorber(self) -> AbsorbFn | None:
        """None: nothing absorbs."""
        return None

    def reader(self) -> StateReader:
        """That of the other one."""
        return self.memory.reader()

    @property
    def state_bytes(self) -> int:
        """0: no eviction changes the states."""
        return 0

    def naive_initial_states(self) -> list[Tensor] | None:
        """Those of the other one."""
        return self.memory.naive_initial_states()

    def naive_absorb(self, layer_index: int, S: Tensor, leaving: list[list[NaiveToken | None]]) -> Tensor:
        """The state as it was."""
        return S

    def naive_reader(self) -> StateReader:
        """That of the other one."""
        return self.memory.naive_reader()
