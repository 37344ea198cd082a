"""The learner's cache: functional, so that gradients flow through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thoughtcache.cache.base import ResidentLayer, StatefulCache, StateReader, States
from thoughtcache.cache.layer_masks import LayerMasks, WithoutOldest


class _FunctionalLayer(ResidentLayer):  # type: ignore[no-untyped-call]
    """Keys and values as tensors with a gradient history; `update` concatenates."""

    def __init__(self, past: tuple[Tensor, Tensor] | None, seen: int) -> None:
        super().__init__()
        self.seen = seen
        if past is not None:
            self.keys, self.values = past
            self.length = self.keys.shape[2]
            self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys = torch.cat([self.keys, key_states], dim=2)
            self.values = torch.cat([self.values, value_states], dim=2)
        self.is_initialized = True
        self.length, self.seen = self.length + key_states.shape[2], self.seen + key_states.shape[2]
        return self.keys, self.values


class ReplayCache(StatefulCache):
    """The functional cache of one segment. Evictions are done by the learner between segments.

    Layers may hold different numbers of thoughts, behind the same number of prompt columns, and heads of one layer as
    well: `blank` has the columns behind the prompt that each of them does not hold. `masks` replaces what follows.
    """

    def __init__(
        self,
        num_layers: int,
        past: Sequence[tuple[Tensor, Tensor] | None] | None,
        num_seen: int,
        states: States,
        reader: StateReader,
        *,
        is_initial: bool = False,
        observer: Any = None,
        num_prompt_columns: int = 0,
        blank: Sequence[tuple[int, ...]] | None = None,
        masks: LayerMasks | None = None,
    ) -> None:
        pasts = past if past is not None else [None] * num_layers
        super().__init__([_FunctionalLayer(entry, num_seen) for entry in pasts], states, reader)
        lengths = [layer.length for layer in self.layers]
        self.widest = lengths.index(max(lengths))
        has_own = min(lengths) < max(lengths) or any(map(any, blank or ()))
        own = WithoutOldest(num_prompt_columns=num_prompt_columns, blank=blank) if has_own else None
        self._masks = own if masks is None else masks
        self._is_initial = is_initial
        self._observer = observer

    @property
    def is_initial(self) -> bool:
        """Whether nothing was evicted before this segment."""
        return self._is_initial

    @property
    def layer_masks(self) -> LayerMasks | None:
        """The mask of the widest layer, without what others do not hold."""
        return self._masks

    @property
    def observer(self) -> Any:
        """Whoever asked to be shown the queries of this segment; None where nobody did."""
        return self._observer

    def of_layer(self, index: int) -> ReplayCache:
        """Another cache with the keys and values of one layer as they are now; what it is given stays its own."""
        layer = self.layers[index]
        past: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        past[index] = None if layer.keys is None else (layer.keys, layer.values)
        return ReplayCache(len(past), past, layer.seen, self.states, self.reader, is_initial=self._is_initial)
