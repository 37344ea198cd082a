"""The paper's memory: a state [G, R] per layer, between the factors of the LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from thoughtcache.cache.base import StateReader, States
from thoughtcache.cache.window_rules import AbsorbFn
from thoughtcache.state.absorb import absorb, initial_state, token_weights
from thoughtcache.state.encoder import ThoughtEncoder
from thoughtcache.state.memory import Memory, NaiveToken
from thoughtcache.state.naive import NAIVE_NORMS, naive_absorb, naive_initial_state
from thoughtcache.state.norms import STATE_NORMS, NormAt, StateNorm
from thoughtcache.state.precision import state_precision

InitialState = Literal["global", "zero", "identity"]


class LinearsRead(StateReader):
    """The adapted linears read the states, normalised where they are kept as raw sums.

    Args:
        norm: how they are normalised for it; "none" leaves them as they are.
    """

    def __init__(self, norm: StateNorm = "none") -> None:
        self.norm: StateNorm = norm

    def of_linears(self, states: States) -> States:
        """The states themselves, or normalised ones [B or 1, G, R] in their own precision despite autocast."""
        if states is None or self.norm == "none":
            return states
        with state_precision(states[0].device.type):
            return [STATE_NORMS[self.norm](state) for state in states]


class NaiveLinearsRead(LinearsRead):
    """The same for one sequence, by loops; what the linears do with it is compared in tests/unit/test_variant.py."""

    def of_linears(self, states: States) -> States:
        """See `LinearsRead`; the states are [1, G, R]."""
        if states is None or self.norm == "none":
            return states
        with state_precision(states[0].device.type):
            return [NAIVE_NORMS[self.norm](state[0]).unsqueeze(0) for state in states]


class AdapterState(Memory):
    """The states of an adapter with these encoders.

    Args:
        encoders: one per layer; none where the state is the identity for ever, or the adapter is off.
        initial: "global" (learned), "zero" or "identity".
        absorbs: whether evicted tokens change the state.
        rule: name of the state rule.
        norm: how the state is normalised, a key of `STATE_NORMS`; what is learned as the initial state is normalised
            by its Frobenius norm under "none" too.
        norm_at: "write", after every write, or "read": states are raw sums, and what the linears read is normalised.
    """

    def __init__(
        self,
        encoders: Sequence[ThoughtEncoder],
        *,
        initial: InitialState,
        absorbs: bool,
        rule: str,
        norm: StateNorm,
        norm_at: NormAt = "write",
    ) -> None:
        self.encoders = list(encoders)
        self.initial = initial
        self.absorbs = absorbs
        self.rule = rule
        self.written: StateNorm = norm if norm_at == "write" else "none"
        self.read: StateNorm = norm if norm_at == "read" else "none"
        self.begun: StateNorm = "frobenius" if norm == "none" else self.written

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the encoders."""
        return [parameter for encoder in self.encoders for parameter in encoder.parameters()]

    def initial_states(self) -> States:
        """The states [1, G, R] of all layers before any eviction; None if there are no encoders."""
        if not self.encoders:
            return None
        if self.initial == "global":
            return [initial_state(encoder.weights(), norm=self.begun) for encoder in self.encoders]
        return [state.unsqueeze(0) for state in self._constant()]

    def absorber(self) -> AbsorbFn | None:
        """The function that absorbs what leaves, by the rule and with the encoders' weights at this moment."""
        if not self.absorbs:
            return None
        weights = [encoder.weights() for encoder in self.encoders]

        def absorb_block(
            layer: int,
            state: Tensor,
            keys: Tensor,
            values: Tensor,
            positions: Tensor | None,
            heads: tuple[bool, ...] | None = None,
        ) -> Tensor:
            return absorb(weights[layer], state, keys, values, rule=self.rule, norm=self.written)

        return absorb_block

    def token_weights(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor | None) -> Tensor:
        """How much each of these leaving tokens [B, H, E, D] counts in the write: [B, 1, E], for the one state."""
        return token_weights(self.encoders[layer].weights(), keys, values, rule=self.rule).unsqueeze(1)

    def reader(self) -> StateReader:
        """The adapted linears read the states."""
        return LinearsRead(self.read)

    @property
    def state_bytes(self) -> int:
        """Bytes of L x G x R numbers in the precision of the encoders; 0 where no eviction changes them."""
        if not self.encoders or not self.absorbs:
            return 0
        rows, columns = self.shape
        return len(self.encoders) * rows * columns * self.encoders[0].log_write_scale.dtype.itemsize

    def naive_initial_states(self) -> list[Tensor] | None:
        """S_0 [G, R] of every layer."""
        if not self.encoders:
            return None
        if self.initial != "global":
            return self._constant()
        with state_precision(self.encoders[0].global_tokens.device.type):
            return [naive_initial_state(encoder, self.begun) for encoder in self.encoders]

    def naive_absorb(self, layer_index: int, S: Tensor, leaving: list[list[NaiveToken | None]]) -> Tensor:
        """The state of one layer after tokens have left, by the rule's loop, in its own precision despite autocast."""
        if not self.absorbs or not self.encoders:
            return S
        K_e = torch.stack([_of_all_heads([kv and kv[0] for kv in heads]) for heads in leaving])
        V_e = torch.stack([_of_all_heads([kv and kv[1] for kv in heads]) for heads in leaving])
        with state_precision(S.device.type):
            return naive_absorb(self.encoders[layer_index], S, K_e, V_e, self.rule, self.written)

    def naive_reader(self) -> StateReader:
        """The adapted linears read the states, normalised by loops."""
        return NaiveLinearsRead(self.read)

    @property
    def shape(self) -> torch.Size:
        """G and R."""
        return torch.Size([self.encoders[0].global_queries.shape[0], self.encoders[0].query_projection.shape[0]])

    def _constant(self) -> list[Tensor]:
        """Initial states that are not learned, [G, R] per layer."""
        make = torch.zeros if self.initial == "zero" else torch.eye
        scales = [encoder.log_write_scale for encoder in self.encoders]
        return [make(*self.shape, dtype=scale.dtype, device=scale.device) for scale in scales]


def _of_all_heads(vectors: list[Tensor | None]) -> Tensor:
    """[K] keys or values [D] of all heads side by side, zeros for heads that evict nothing."""
    zeros = torch.zeros_like(next(vector for vector in vectors if vector is not None))
    return torch.cat([zeros if vector is None else vector for vector in vectors])
