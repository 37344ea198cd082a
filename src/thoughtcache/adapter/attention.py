"""Another attention function inside a block, and queries on their way into attention.

Attention layers of transformers look up their function by a name in the model's configuration. A block gives the
configuration another name; blocks may nest, and overlap in threads that share the model.

Eviction policies may look at queries. transformers hands further arguments of a model's forward pass down to the
attention function of every layer. Inside `observed_queries` the configured function is replaced by one that shows its
queries to the argument `thought_queries`, if the pass has one, and then calls the configured function. Passes without
the argument, of other threads too, go as ever.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ARGUMENT = "thought_queries"
PREFIX = "thoughtcache_observed_"
_LOCK = Lock()
_BLOCKS: Counter[tuple[int, str]] = Counter()
"""Number of blocks that use a name now, by the address of the configuration, which a block keeps alive."""


@contextmanager
def attention_block(config: PretrainedConfig, choose: Callable[[str], tuple[str, str] | None]) -> Iterator[None]:
    """Use another attention function inside the block; the last block of a name to end puts the plain one back.

    Args:
        config: configuration that the model's attention layers read.
        choose: (name that the configuration has now) -> (plain name, other name), with the other one registered; None
            leaves the configuration alone. It is called under the lock.
    """
    with _LOCK:
        names = choose(str(config._attn_implementation))
        if names is not None:
            _BLOCKS[id(config), names[1]] += 1
            config._attn_implementation = names[1]
    try:
        yield
    finally:
        if names is not None:
            plain, other = names
            with _LOCK:
                _BLOCKS[id(config), other] -= 1
                if not _BLOCKS[id(config), other]:
                    del _BLOCKS[id(config), other]
                    config._attn_implementation = plain


@runtime_checkable
class QueryObserver(Protocol):
    """The object that a forward pass is given as `thought_queries`."""

    def observe(self, layer_index: int, queries: Tensor) -> None:
        """Told of the queries [B, Q, T, D] of one layer, rotated; T new tokens."""


def observed_queries(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Let forward passes show their queries inside a block.

    Args:
        config: configuration that the model's attention layers read.
    """

    def choose(now: str) -> tuple[str, str]:
        plain = now.removeprefix(PREFIX)
        _register(plain)  # now and not on import, which is to change nothing
        return plain, PREFIX + plain

    return attention_block(config, choose)


def _register(plain: str) -> None:
    """Enter the observed form of an attention function in transformers' tables; again changes nothing."""
    AttentionInterface.register(PREFIX + plain, _observed(plain))
    AttentionMaskInterface.register(PREFIX + plain, ALL_MASK_ATTENTION_FUNCTIONS[plain])


@cache
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
        if plain == "eager":  # no table has it: every family has its own
            run = sys.modules[type(module).__module__].eager_attention_forward
        else:
            run = ALL_ATTENTION_FUNCTIONS[plain]
        result: tuple[Tensor, Tensor | None] = run(module, query, *args, **kwargs)
        return result

    return attention
