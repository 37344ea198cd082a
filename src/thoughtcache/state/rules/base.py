"""The interface of a state rule: one file with its parameters, its fast form, its loop, and its arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from thoughtcache.state.encoder import ThoughtEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderWeights:
    """The encoder's tensors in the state's precision, ready for pure functions.

    Attributes:
        queries: [G, R] projected global queries, `q_g W_Q^T / sqrt(K)`.
        key_projection: [R, K] `W_K / sqrt(K)`.
        value_projection: [R, K] `W_V / sqrt(K)`.
        global_tokens: [G, K] `h_g`, learnable keys and values of the initial state.
        log_write_scale: [] log of the write scale `w`.
        extra: parameters of the rule by name, scalars without dimensions.
    """

    queries: Float[Tensor, "G R"]
    key_projection: Float[Tensor, "R K"]
    value_projection: Float[Tensor, "R K"]
    global_tokens: Float[Tensor, "G K"]
    log_write_scale: Float[Tensor, ""]
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtraParameter:
    """A learnable parameter that a rule has beside the encoder's own.

    Attributes:
        name: the attribute of the encoder, and part of the names in saved adapters.
        initial: value of all its entries.
        size: its entries by K; None for a scalar, which is kept as [1].
    """

    name: str
    initial: float
    size: Callable[[int], int] | None = None

    def count(self, kv_size: int) -> int:
        """Entries of a layer with K = `kv_size`."""
        return 1 if self.size is None else self.size(kv_size)


class StateRule(ABC):
    """A rule by which the keys and values that leave change the thought state. It is never instantiated.

    Axes: B batch, E evicted tokens, K kv heads x head size, G global tokens, R rank.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[ExtraParameter, ...]] = ()
    saved_per_entry: ClassVar[int] = 4
    """fp32 numbers that its backward pass needs per number of the keys that leave (planning/memory/layer.py)."""

    @staticmethod
    @abstractmethod
    def write(
        weights: EncoderWeights,
        state: Float[Tensor, "B G R"],
        keys: Float[Tensor, "B E K"],
        values: Float[Tensor, "B E K"],
    ) -> Float[Tensor, "B G R"]:
        """The state after tokens with these keys and values have left; before it is normalised.

        Args:
            weights: the encoder's tensors.
            state: the state before, in fp32 or more.
            keys: keys of the tokens that leave, RMS-normalised per token.
            values: their values, RMS-normalised as well.
        """

    @staticmethod
    def token_weights(
        weights: EncoderWeights, keys: Float[Tensor, "B E K"], values: Float[Tensor, "B E K"]
    ) -> Float[Tensor, "B E G"]:
        """How much each token counts in what is written for each global query, for studies; never negative.

        This form is the linear one, `|Q W_K k|`; a rule with a gate or a softmax has its own.
        """
        return (keys @ weights.key_projection.T @ weights.queries.T).abs()

    @staticmethod
    @abstractmethod
    def naive_write(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor) -> Tensor:
        """The result of `write` for one sequence, by a loop over tokens in the paper's letters.

        `K_e` and `V_e` [m, K] are as cached; `S` and the result are [G, R].
        """

    @staticmethod
    @abstractmethod
    def flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
        """Operations of one write of one layer of one sequence.

        Args:
            kv_size: K.
            num_evicted: E.
            rank: R.
            num_global_tokens: G.
        """


def projection_flops(kv_size: int, num_evicted: int, rank: int) -> int:
    """Operations of projecting the keys and the values that leave."""
    return 4 * num_evicted * kv_size * rank


def outer_flops(num_evicted: int, rank: int, num_global_tokens: int) -> int:
    """Operations of one product of all evicted tokens with the queries, or of all their outer products."""
    return 2 * num_evicted * num_global_tokens * rank
