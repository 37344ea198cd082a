"""Another attention function inside a block, and what ours do around the attention of a model.

Attention layers of transformers look up their function by a name in the model's configuration. A block gives the
configuration another name; blocks may nest, and overlap in threads that share the model.

transformers hands further arguments of a model's forward pass down to the attention function of every layer. Inside
`thought_attention` the configured function is replaced by one that knows two of ours: it shows its queries to
`thought_queries` (eviction policies that score look at them), calls the configured function, and gives the output to
`thought_memory`, which adds what it remembers. Passes without these arguments, of other threads too, go as ever.
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

from thoughtcache.cache.base import AttentionRead

QUERIES = "thought_queries"
MEMORY = "thought_memory"
PREFIX = "thoughtcache_around_"
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


def thought_attention(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Let forward passes show their queries, and read the memory, inside a block.

    Args:
        config: configuration that the model's attention layers read.
    """

    def choose(now: str) -> tuple[str, str]:
        plain = now.removeprefix(PREFIX)
        _register(plain)  # now and not on import, which is to change nothing
        return plain, PREFIX + plain

    return attention_block(config, choose)


def _register(plain: str) -> None:
    """Enter our form of an attention function in transformers' tables; again changes nothing."""
    AttentionInterface.register(PREFIX + plain, _around(plain))
    AttentionMaskInterface.register(PREFIX + plain, ALL_MASK_ATTENTION_FUNCTIONS[plain])


@cache
def _around(plain: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """An attention function that shows its queries first, and reads the memory last."""

    def attention(
        module: nn.Module,
        query: Tensor,
        *args: Any,
        thought_queries: QueryObserver | None = None,
        thought_memory: AttentionRead | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer: Any = module
        if thought_queries is not None:
            thought_queries.observe(layer.layer_idx, query)
        if plain == "eager":  # no table has it: every family has its own
            run = sys.modules[type(module).__module__].eager_attention_forward
        else:
            run = ALL_ATTENTION_FUNCTIONS[plain]
        output, weights = run(module, query, *args, **kwargs)
        if thought_memory is not None:
            output = thought_memory(layer.layer_idx, query, output)
        return output, weights

    return attention
