"""Another attention function inside a block, and what ours do around the attention of a model.

Attention layers of transformers look up their function by a name in the model's configuration. A block gives the
configuration another name; blocks may nest, and overlap in threads that share the model.

transformers hands further arguments of a model's forward pass down to the attention function of every layer. Inside
`thought_attention` the configured function is replaced by one that knows three of ours: it shows its queries to
`thought_queries` (eviction policies that score look at them), calls the configured function, under the mask that
`thought_masks` has for the layer where layers hold different numbers of tokens, and gives the output to
`thought_memory`, which adds what it remembers; one that competes with the window is told the window's share as well.
Passes without these arguments, of other threads too, go as ever.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from thoughtcache.cache.base import AttentionRead
from thoughtcache.cache.layer_masks import LayerMasks, added_to_scores
from thoughtcache.state.attention.window_share import attention_with_share

QUERIES = "thought_queries"
MEMORY = "thought_memory"
MASKS = "thought_masks"
PREFIX = "thoughtcache_around_"
Form = Callable[[str], str]
KINDS = ("function", "around")
"""Kinds of blocks, in the order in which they change the name: another function first, what runs around it last."""


@dataclass(slots=True)
class _Changed:
    """A configuration whose attention some blocks have changed now.

    Attributes:
        plain: the name that it had before the first one.
        counts: number of blocks of each kind.
        forms: what a block of each kind makes of a name.
    """

    plain: str
    counts: Counter[str] = field(default_factory=Counter)
    forms: dict[str, Form] = field(default_factory=dict)

    def name(self) -> str:
        """The name with the changes of all kinds that are in use."""
        found = self.plain
        for kind in KINDS:
            if self.counts[kind]:
                found = self.forms[kind](found)
        return found


_LOCK = Lock()
_CHANGED: dict[int, _Changed] = {}
"""By the address of the configuration, which its blocks keep alive."""


@contextmanager
def attention_block(config: PretrainedConfig, kind: str, form: Form) -> Iterator[None]:
    """Use another attention function inside the block.

    Blocks of one configuration may nest and overlap in any way, in several threads: a change lasts until the last block
    of its kind ends, and takes no change of another kind away.

    Args:
        config: configuration that the model's attention layers read.
        kind: one of `KINDS`.
        form: (name of an attention function) -> name to use instead, which it has registered. It is called under the
            lock.
    """
    with _LOCK:
        changed = _CHANGED.setdefault(id(config), _Changed(str(config._attn_implementation)))
        changed.counts[kind] += 1
        changed.forms[kind] = form
        config._attn_implementation = changed.name()
    try:
        yield
    finally:
        with _LOCK:
            changed.counts[kind] -= 1
            config._attn_implementation = changed.name()
            if not any(changed.counts.values()):
                del _CHANGED[id(config)]


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
    return attention_block(config, "around", _register)


def _register(plain: str) -> str:
    """The name of our form of an attention function, entered in transformers' tables; again changes nothing."""
    AttentionInterface.register(PREFIX + plain, _around(plain))  # now and not on import, which is to change nothing
    AttentionMaskInterface.register(PREFIX + plain, ALL_MASK_ATTENTION_FUNCTIONS[plain])
    return PREFIX + plain


@cache
def _around(plain: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """An attention function that shows its queries first, and reads the memory last."""

    def attention(
        module: nn.Module,
        query: Tensor,
        *args: Any,
        thought_queries: QueryObserver | None = None,
        thought_memory: AttentionRead | None = None,
        thought_masks: LayerMasks | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer: Any = module
        if thought_masks is not None:
            key, value, mask, *others = args
            mask = thought_masks.of_layer(layer.layer_idx, mask, query, key)
            args = (key, value, added_to_scores(mask, query.dtype) if plain == "eager" else mask, *others)
        if thought_queries is not None:
            thought_queries.observe(layer.layer_idx, query)
        if plain == "eager":  # no table has it: every family has its own
            run = sys.modules[type(module).__module__].eager_attention_forward
        else:
            run = ALL_ATTENTION_FUNCTIONS[plain]
        window: Tensor | None = None
        wants = "nothing" if thought_memory is None else thought_memory.wants
        if wants == "share":
            output, window, weights = attention_with_share(run, module, query, *args, **kwargs)
        else:
            output, weights = run(module, query, *args, **kwargs)
        if wants == "keys":
            window = _seen(args[0], args[2]) * kwargs["scaling"]
        if thought_memory is not None:
            output = thought_memory(layer.layer_idx, query, output, window)
        return output, weights

    return attention


def _seen(keys: Tensor, mask: Tensor | None) -> Tensor:
    """Keys [B, H, m, D] of the window, NaN where a mask by head [B, Q, 1, m] lets no query see them."""
    if mask is None or mask.shape[1] == 1:
        return keys
    own = mask[:, :: mask.shape[1] // keys.shape[1], 0]
    hidden = ~own if own.dtype == torch.bool else own < 0
    return keys.masked_fill(hidden.unsqueeze(-1), float("nan"))
