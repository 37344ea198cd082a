"""Queries on their way into attention, for eviction policies that look at them.

transformers hands further arguments of a model's forward pass down to the attention function of every layer. Inside a
block the configured function is replaced by one that shows its queries to the argument `thought_queries`, if the pass
has one, and then calls the configured function. Passes without the argument, of other threads too, go as ever.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ARGUMENT = "thought_queries"
PREFIX = "thoughtcache_observed_"
_LOCK = Lock()
_BLOCKS: Counter[int] = Counter()
"""How many blocks are open now, by the address of the configuration, which a block keeps alive."""


@runtime_checkable
class QueryObserver(Protocol):
    """What a forward pass is given as `thought_queries`."""

    def observe(self, layer_index: int, queries: Tensor) -> None:
        """Told of the queries [B, Q, T, D] of one layer, rotated; T new tokens."""


@contextmanager
def observed_queries(config: PretrainedConfig) -> Iterator[None]:
    """Let forward passes show their queries inside the block.

    Args:
        config: configuration that the model's attention layers read.
    """
    with _LOCK:
        plain = str(config._attn_implementation).removeprefix(PREFIX)
        _register(plain)  # now and not on import, which is to change nothing
        _BLOCKS[id(config)] += 1
        config._attn_implementation = PREFIX + plain
    try:
        yield
    finally:
        with _LOCK:
            _BLOCKS[id(config)] -= 1
            if not _BLOCKS[id(config)]:
                del _BLOCKS[id(config)]
                config._attn_implementation = plain


def _register(plain: str) -> None:
    """Enter the observed form of an attention function in transformers' tables; again changes nothing."""
    AttentionInterface.register(PREFIX + plain, _observed(plain))
    AttentionMaskInterface.register(PREFIX + plain, ALL_MASK_ATTENTION_FUNCTIONS[plain])


def _observed(plain: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """An attention function that shows its queries first."""

    def attention(
        module: nn.Module,
        query: Tensor,
        *args: Any,
        thought_queries: QueryObserver | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer: Any = module
        if thought_queries is not None:
            thought_queries.observe(layer.layer_idx, query)
        if plain == "eager":  # in no table: every family has its own
            run = sys.modules[type(module).__module__].eager_attention_forward
        else:
            run = ALL_ATTENTION_FUNCTIONS[plain]
        result: tuple[Tensor, Tensor | None] = run(module, query, *args, **kwargs)
        return result

    return attention
