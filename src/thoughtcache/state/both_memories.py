"""Both memories in one adapter: a state inside the LoRA factors, and one in attention space.

Caches, records and the learner carry one tensor per layer and row: the numbers of the first state, then those of the
second.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Size, Tensor, cat, nn

from thoughtcache.cache.base import AttentionRead, StateReader, States
from thoughtcache.cache.window_rules import AbsorbFn
from thoughtcache.state.adapter_state import AdapterState
from thoughtcache.state.attention_memory import AttentionMemory
from thoughtcache.state.memory import Memory, NaiveToken


class BothMemories(Memory):
    """Writes what leaves to both; linears read the first, attention the second.

    Args:
        linears: the state inside the LoRA factors.
        attention: the memory in attention space; empty where the first is, when the adapter is off.
    """

    def __init__(self, linears: AdapterState, attention: AttentionMemory) -> None:
        self.linears = linears
        self.attention = attention

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of both."""
        return [*self.linears.parameters(), *self.attention.parameters()]

    def initial_states(self) -> States:
        """[1, N] per layer, N numbers in all."""
        first, second = self.linears.initial_states(), self.attention.initial_states()
        if first is None or second is None:
            return None
        return [_packed(S, M) for S, M in zip(first, second, strict=True)]

    def absorber(self) -> AbsorbFn | None:
        """Writes the same tokens to both."""
        of_linears, of_attention, shapes = self.linears.absorber(), self.attention.absorber(), self._shapes
        if of_linears is None or of_attention is None or shapes is None:
            return None

        def write(
            layer: int,
            state: Tensor,
            keys: Tensor,
            values: Tensor,
            positions: Tensor | None,
            heads: tuple[bool, ...] | None = None,
        ) -> Tensor:
            S, M = _parts(state, shapes)
            return _packed(
                of_linears(layer, S, keys, values, positions, heads),
                of_attention(layer, M, keys, values, positions, heads),
            )

        return write

    @property
    def absorbs_positions(self) -> bool:
        """Whether the one in attention space does."""
        return self.attention.absorbs_positions

    def reader(self) -> StateReader:
        """Shows each its own."""
        return _BothRead(self.linears.reader(), self.attention.reader(), self._shapes)

    @property
    def state_bytes(self) -> int:
        """Bytes of both."""
        return self.linears.state_bytes + self.attention.state_bytes

    def naive_initial_states(self) -> list[Tensor] | None:
        """[N] per layer."""
        first, second = self.linears.naive_initial_states(), self.attention.naive_initial_states()
        if first is None or second is None:
            return None
        return [cat([S.flatten(), M.flatten()]) for S, M in zip(first, second, strict=True)]

    def naive_absorb(self, layer_index: int, S: Tensor, leaving: list[list[NaiveToken | None]]) -> Tensor:
        """Both states after these tokens have left, one after the other."""
        if self._shapes is None:
            return S
        first, second = (part[0] for part in _parts(S[None], self._shapes))
        written = self.linears.naive_absorb(layer_index, first, leaving)
        return cat([written.flatten(), self.attention.naive_absorb(layer_index, second, leaving).flatten()])

    def naive_reader(self) -> StateReader:
        """Shows each its own, to loops."""
        return _BothRead(self.linears.naive_reader(), self.attention.naive_reader(), self._shapes)

    @property
    def _shapes(self) -> tuple[Size, Size] | None:
        """Shapes of the two states of a layer and row; None where the adapter is off."""
        if not self.linears.encoders or not self.attention.layers:
            return None
        return self.linears.shape, self.attention.shape


class _BothRead(StateReader):
    """Gives linears and attention their parts of the states."""

    reads_attention = True

    def __init__(self, linears: StateReader, attention: StateReader, shapes: tuple[Size, Size] | None) -> None:
        self.linears = linears
        self.attention = attention
        self.shapes = shapes

    def of_linears(self, states: States) -> States:
        """What linears read of the first ones."""
        return self.linears.of_linears(self._part(states, 0))

    def of_attention(self, states: States, position_ids: Int[Tensor, "#B T"]) -> AttentionRead | None:
        """What attention reads of the second ones."""
        return self.attention.of_attention(self._part(states, 1), position_ids)

    def _part(self, states: States, index: int) -> States:
        if states is None or self.shapes is None:
            return None
        return [_parts(state, self.shapes)[index] for state in states]


def _packed(first: Float[Tensor, "#B G R"], second: Float[Tensor, "#B H F C"]) -> Float[Tensor, "#B N"]:
    """The numbers of both, side by side."""
    return cat([first.flatten(1), second.flatten(1)], dim=1)


def _parts(state: Float[Tensor, "#B N"], shapes: tuple[Size, Size]) -> tuple[Tensor, Tensor]:
    """The two states, in their shapes."""
    size = shapes[0].numel()
    return state[:, :size].reshape(-1, *shapes[0]), state[:, size:].reshape(-1, *shapes[1])
