"""The base of every cache of this package: a cache that transformers models read, with a thought state per layer.

Its layers hold `[prompt | resident thoughts]`, physically contiguous. It reports *all* tokens seen as its length
(positions count evicted tokens too) and its physical length to the attention mask. Evictions happen between forwards,
never inside `update`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from thoughtcache.cache.layer_masks import LayerMasks

States = list[Tensor] | None
"""[B or 1, ...] per layer; None for the identity."""


class AttentionRead(ABC):
    """What attention reads of the states, in one forward pass."""

    wants = "nothing"
    """What it has to be told of the window: "nothing", its "share" of the attention, or the "keys" themselves."""

    @abstractmethod
    def __call__(
        self,
        layer_index: int,
        queries: Float[Tensor, "B Q T D"],
        output: Float[Tensor, "B T Q D"],
        window: Tensor | None = None,
    ) -> Float[Tensor, "B T Q D"]:
        """The output of attention with what the state of a layer adds.

        Args:
            layer_index: the layer.
            queries: queries as they were rotated.
            output: output of attention; under "share" that of `attention_with_share`.
            window: None; or [B, T, Q, 2], the shares of a key of score zero and of the window beside it; or
                [B, H, m, D], the keys of the window times the scale of the scores, NaN where a head has none.
        """


class StateReader(ABC):
    """Shows the states of a cache to those who read them in a forward pass."""

    reads_attention = False
    """Whether `of_attention` has anything to read."""

    @abstractmethod
    def of_linears(self, states: States) -> States:
        """What the adapted linears read: [B or 1, G, R] per layer; None for the identity."""

    def of_attention(self, states: States, position_ids: Int[Tensor, "#B T"]) -> AttentionRead | None:
        """What attention reads, for new tokens at these positions; None if nothing."""
        return None


class ResidentLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values. `seen` counts all tokens ever written, `length` those that are resident."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = 0
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the first `update` makes the buffers."""
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Physical columns that a query attends to, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """All tokens ever written."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: not bounded for transformers."""
        return -1


class StatefulCache(Cache):
    """A cache that carries the thought state of every layer.

    Args:
        layers: one per decoder layer.
        states: [B or 1, ...] per layer, or None where there is no state (plain LoRA).
        reader: shows the states to forward passes.
    """

    states: States
    layers: Any
    owner: str | None = None
    """Name of the adapter whose states it holds; None where whoever runs it sees to that."""
    widest = 0
    """Index of a layer that holds most tokens."""
    is_samplers = False
    """Whether this is the cache of our own sampler, which marks the model as in use before it runs."""

    def __init__(self, layers: list[Any], states: States, reader: StateReader) -> None:
        super().__init__(layers=layers)
        self.states = states
        self.reader = reader

    @property
    def is_initial(self) -> bool:
        """Whether nothing was evicted so far, which leaves attention nothing to read; False where that is not known."""
        return False

    @property
    def linear_states(self) -> States:
        """What the adapted linears read in a forward pass: [B or 1, G, R] per layer; None for the identity."""
        return self.reader.of_linears(self.states)

    @property
    def physical_length(self) -> int:
        """Tokens that are resident now in the layer that holds most, prompt padding included."""
        return int(self.layers[self.widest].length)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Physical offset of the next query: without it a multi-token segment would see its own future."""
        return self.physical_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Columns of the one mask that transformers makes: those of the layer that holds most."""
        sizes: tuple[int, int] = self.layers[self.widest].get_mask_sizes(query_length)
        return sizes

    @property
    def layer_masks(self) -> LayerMasks | None:
        """The masks of the coming forward pass by layer; None where one mask serves all layers."""
        return None

    @property
    def is_croppable(self) -> bool:
        """Never, since what was absorbed cannot come back; older versions of transformers lack the property."""
        return False

    @property
    def positions_behind(self) -> int:
        """Number by which positions lag behind the count of all tokens; 0 where the caller passes exact positions."""
        return 0

    @property
    def observer(self) -> Any:
        """Whom the coming forward pass shows its queries; None where nobody looks at them."""
        return None

    def prepare_forward(self, num_new_tokens: int) -> None:
        """Called before each forward of the backbone; makes room where the cache is bounded."""

    def note_positions(self, position_ids: Tensor) -> None:
        """Called before each forward of the backbone with the positions [B or 1, T] of its tokens."""

    def compact_mask(self, mask: Tensor, num_new_tokens: int) -> Tensor:
        """The 2D mask over physical columns; the identity where nothing was evicted inside this cache."""
        return mask

    # What transformers does to a cache moves keys and values only. Unless a class moves the states too, it refuses.

    def reset(self) -> None:
        """Refused."""
        raise self._unmoved("reset()", "make a new cache")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused."""
        raise self._unmoved("reorder_cache()", "make a new cache")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refused."""
        raise self._unmoved("batch_select_indices()", "make a new cache")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused."""
        raise self._unmoved("batch_repeat_interleave()", "make a new cache")

    def crop(self, tokens_to_remove: int) -> None:
        """Does nothing for 0 tokens.

        Raises:
            ValueError: if the number is not 0, because what was evicted and absorbed cannot come back.
        """
        if tokens_to_remove:
            raise self._unmoved(
                f"crop({tokens_to_remove})", "thoughts that were evicted cannot come back, so start with a new cache"
            )

    def _unmoved(self, call: str, remedy: str) -> ValueError:
        return ValueError(f"{type(self).__name__}.{call} would leave the thought states where they are; {remedy}")
