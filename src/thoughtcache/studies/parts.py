"""The memories of an adapter one by one, whatever shape their states are carried in."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from thoughtcache.state.adapter_state import AdapterState
from thoughtcache.state.attention_memory import AttentionMemory
from thoughtcache.state.both_memories import BothMemories
from thoughtcache.state.memory import Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One memory of an adapter.

    Attributes:
        name: "adapter" or "attention".
        memory: it.
        start: where its numbers begin in the states that are carried.
    """

    name: str
    memory: AdapterState | AttentionMemory
    start: int

    def numbers(self, state: Float[Tensor, "B *state"]) -> Float[Tensor, "B *own"]:
        """Its own numbers in a layer's state, in its own shape."""
        shape = self.memory.shape
        return state.flatten(1)[:, self.start : self.start + shape.numel()].view(-1, *shape)

    def matrices(self, state: Float[Tensor, "B *state"]) -> Float[Tensor, "B H rows columns"]:
        """Its contents in a layer's state: one matrix [G, R], or one [F, D] per key-value head, without the counts."""
        numbers = self.numbers(state)
        return numbers[..., :-1] if isinstance(self.memory, AttentionMemory) else numbers.unsqueeze(1)


def parts_of(memory: Memory) -> list[Part]:
    """The memories of an adapter that is on."""
    if isinstance(memory, BothMemories):
        second = memory.linears.shape.numel()
        return [
            Part(name="adapter", memory=memory.linears, start=0),
            Part(name="attention", memory=memory.attention, start=second),
        ]
    assert isinstance(memory, AdapterState | AttentionMemory)
    name = "attention" if isinstance(memory, AttentionMemory) else "adapter"
    return [Part(name=name, memory=memory, start=0)]
