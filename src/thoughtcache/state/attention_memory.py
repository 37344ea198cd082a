"""The memory in attention space: a state [H, F, D + 1] per layer, written by keys, read by queries.

Keys and queries meet un-rotated ("content"): what was said is found wherever it stood. With "rotated" keys the distance
between both has a say, as in attention itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thoughtcache.cache.base import AttentionRead, StateReader, States
from thoughtcache.cache.rotation import KeyRotation, Rotations, Turning, naive_turn, turn
from thoughtcache.cache.window_rules import AbsorbFn
from thoughtcache.state.attention.naive import naive_read, naive_write
from thoughtcache.state.attention.read import read_memory, token_weights, write_memory
from thoughtcache.state.attention.weights import MemoryTensors, MemoryWeights
from thoughtcache.state.memory import Memory, NaiveToken
from thoughtcache.state.precision import state_precision


class AttentionMemory(Memory):
    """The memory of an adapter with these parameters.

    Args:
        layers: parameters, one per decoder layer; none where the adapter is off.
        rotations: how the model rotates the keys of each layer; None if keys stay rotated.
    """

    def __init__(self, layers: Sequence[MemoryWeights], rotations: Rotations | None) -> None:
        self.layers = list(layers)
        self.rotations = rotations

    @cached_property
    def tensors(self) -> list[MemoryTensors]:
        """The parameters as writes and reads use them, one value per layer."""
        return [layer.tensors() for layer in self.layers]

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of all layers."""
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    def initial_states(self) -> States:
        """[1, H, F, D + 1] per layer: nothing is remembered."""
        states = self.naive_initial_states()
        return None if states is None else [state.unsqueeze(0) for state in states]

    def absorber(self) -> AbsorbFn | None:
        """Writes what leaves by its keys, un-rotated where they are."""
        if not self.layers:
            return None
        tensors = self.tensors

        def write(
            layer: int,
            state: Tensor,
            keys: Tensor,
            values: Tensor,
            positions: Tensor | None,
            heads: tuple[bool, ...] | None = None,
        ) -> Tensor:
            looked_up = self._looked_up(layer, keys, positions, state.dtype)
            written = write_memory(tensors[layer], state, looked_up, values)
            if heads is None:
                return written
            # What evicts nothing neither writes nor fades.
            return torch.where(torch.tensor(heads, device=state.device)[:, None, None], written, state)

        return write

    @property
    def absorbs_positions(self) -> bool:
        """Whether keys are un-rotated."""
        return self.rotations is not None and any(rotation is not None for rotation in self.rotations)

    def token_weights(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor | None) -> Tensor:
        """How much of each of these leaving tokens [B, H, E, D] is written: [B, H, E]."""
        tensors = self.tensors[layer]
        return token_weights(tensors, self._looked_up(layer, keys, positions, tensors.gate.dtype), values)

    def _looked_up(self, layer: int, keys: Tensor, positions: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Keys as they are written: un-rotated, or as they are."""
        rotation = self._rotation(layer)
        if rotation is None:
            return keys
        assert positions is not None, "absorbs_positions says that they are wanted"
        return rotation.shift(keys.to(dtype), -positions)

    def reader(self) -> StateReader:
        """Attention reads the states; the adapted linears are plain LoRA."""
        return MemoryReader(self.tensors, self.rotations)

    @property
    def state_bytes(self) -> int:
        """Bytes of L x H x F x (D + 1) numbers in the precision of the parameters."""
        return sum(layer.shape.state_floats * layer.gate.dtype.itemsize for layer in self.layers)

    def naive_initial_states(self) -> list[Tensor] | None:
        """Zeros [H, F, D + 1] per layer."""
        if not self.layers:
            return None
        return [layer.gate.new_zeros(self.shape) for layer in self.layers]

    @property
    def shape(self) -> torch.Size:
        """H, F and D + 1."""
        return torch.Size(self.layers[0].shape.state_shape)

    def naive_absorb(self, layer_index: int, S: Tensor, leaving: list[list[NaiveToken | None]]) -> Tensor:
        """The memory [H, F, D + 1] of one layer after these tokens, written token by token and head by head."""
        if not self.layers:
            return S
        rotation = self._rotation(layer_index)
        keys = [[kv and _unrotated(kv[0].to(S.dtype), kv[2], rotation) for kv in heads] for heads in leaving]
        values = [[kv and kv[1] for kv in heads] for heads in leaving]
        with state_precision(S.device.type):
            return naive_write(self.layers[layer_index], S, keys, values)

    def naive_reader(self) -> StateReader:
        """Attention reads the states in loops over heads."""
        return NaiveMemoryReader(self.layers, self.rotations)

    def _rotation(self, layer_index: int) -> KeyRotation | None:
        return None if self.rotations is None else self.rotations[layer_index]


class MemoryReader(StateReader):
    """Shows the memory to attention.

    Args:
        tensors: the parameters, one value per layer.
        rotations: how the model rotates the queries of each layer; None if they stay rotated.
    """

    reads_attention = True

    def __init__(self, tensors: Sequence[MemoryTensors], rotations: Rotations | None) -> None:
        self.tensors = list(tensors)
        of_layers = [None] * len(self.tensors) if rotations is None else rotations
        self.turned = [rotation is not None for rotation in of_layers]
        self.rotation = next((rotation for rotation in of_layers if rotation is not None), None)

    def of_linears(self, states: States) -> States:
        """None: the adapted linears are plain LoRA, whose state is the identity."""
        return None

    def of_attention(self, states: States, position_ids: Int[Tensor, "#B T"]) -> AttentionRead | None:
        """The memories of all layers, and the angles that undo the positions, which all layers share."""
        if states is None or not self.tensors:
            return None
        back: Turning | None = None
        if self.rotation is not None:
            back = self.rotation.turning(-position_ids[:, None], states[0])
        return MemoryRead(tensors=self.tensors, states=states, back=back, turned=self.turned)


@dataclass(frozen=True, kw_only=True)
class MemoryRead(AttentionRead):
    """What one forward pass reads.

    Attributes:
        tensors: the parameters, one value per layer.
        states: [B or 1, H, F, D + 1] per layer.
        back: angles by which queries are un-rotated, or None.
        turned: whether a layer's queries were rotated and are to be turned back.
    """

    tensors: Sequence[MemoryTensors]
    states: list[Tensor]
    back: Turning | None
    turned: Sequence[bool]

    @property
    def wants(self) -> str:  # type: ignore[override] # fixed by the shape
        """The window's share where window and memory have one denominator."""
        return "share" if self.tensors[0].shape.read == "joint" else "nothing"

    def __call__(
        self,
        layer_index: int,
        queries: Float[Tensor, "B Q T D"],
        output: Float[Tensor, "B T Q D"],
        window: Tensor | None = None,
    ) -> Float[Tensor, "B T Q D"]:
        """The output of a layer with what its memory adds; see `AttentionRead`."""
        state = self.states[layer_index]
        queries = queries.to(state.dtype)
        if self.back is not None and self.turned[layer_index]:
            queries = turn(queries, self.back)
        return read_memory(self.tensors[layer_index], state, queries, output, window)


class NaiveMemoryReader(StateReader):
    """The same for one sequence and one token, in loops.

    Args:
        layers: the parameters.
        rotations: see `MemoryReader`.
    """

    reads_attention = True

    def __init__(self, layers: Sequence[MemoryWeights], rotations: Rotations | None) -> None:
        self.layers = layers
        self.rotations = rotations

    def of_linears(self, states: States) -> States:
        """None: the adapted linears are plain LoRA, whose state is the identity."""
        return None

    def of_attention(self, states: States, position_ids: Int[Tensor, "#B T"]) -> AttentionRead | None:
        """What reads the memory of a layer in loops."""
        if states is None or not self.layers:
            return None
        return NaiveMemoryRead(self.layers, states, self.rotations, int(position_ids.item()))


class NaiveMemoryRead(AttentionRead):
    """What one naive forward pass of one token reads.

    Args:
        layers: the parameters.
        states: [1, H, F, D + 1] per layer.
        rotations: see `MemoryReader`.
        position: position of the token.
    """

    def __init__(
        self, layers: Sequence[MemoryWeights], states: list[Tensor], rotations: Rotations | None, position: int
    ) -> None:
        self.layers, self.states, self.rotations, self.position = layers, states, rotations, position
        self.wants = "keys" if layers[0].shape.read == "joint" else "nothing"

    def __call__(self, layer_index: int, queries: Tensor, output: Tensor, window: Tensor | None = None) -> Tensor:
        """The output with what the memory adds, head by head; see `AttentionRead`."""
        state = self.states[layer_index][0]
        rotation = None if self.rotations is None else self.rotations[layer_index]
        with state_precision(state.device.type):
            q = torch.stack([_unrotated(one.to(state.dtype), self.position, rotation) for one in queries[0, :, 0]])
            mass = None if window is None else _masses(queries[0, :, 0], window[0])
            return naive_read(self.layers[layer_index], state, q, output[0, 0], mass)[None, None]


def _masses(queries: Tensor, keys: Tensor) -> list[Tensor]:
    """sum_j e^(q . k_j) of every query head [Q, D], over keys [H, m, D] that are scaled; NaN where there is none."""
    group = len(queries) // len(keys)
    held = [[k for k in head if not k.isnan().any()] for head in keys]
    return [torch.stack([(k @ q).exp() for k in held[i // group]]).sum() for i, q in enumerate(queries)]


def _unrotated(vector: Tensor, position: int, rotation: KeyRotation | None) -> Tensor:
    """A key or query [D] as it was before it was turned to its position."""
    return vector if rotation is None else naive_turn(vector, -position, rotation.frequencies)
