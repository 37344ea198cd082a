"""transformers' caches as they are after a long prefill, filled with random numbers.

Neither time nor memory of a decoding step depends on the values, and a prefill of thousands of tokens would take
longer than what is measured.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from benchmarks.sampler.clock import RoundClock
from benchmarks.sampler.models import FIRST_PLAIN_TOKEN, sample_generate
from thoughtcache.adapter.cache_argument import cache_keyword

CACHES = ("dynamic", "static")
WARM_UP = 2


def prefilled_cache(kind: str, base: PreTrainedModel, batch: int, depth: int, room: int) -> Cache:
    """A cache that has seen `depth` tokens of each row.

    Args:
        kind: "dynamic", transformers' default, or "static", preallocated for `room` more tokens and no longer.
        base: whose keys and values.
        batch: rows.
        depth: tokens seen.
        room: tokens to come.
    """
    config = base.config
    heads, size = (
        config.num_key_value_heads,
        getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
    )
    past = torch.randn(1, heads, depth, size, dtype=base.dtype, device=base.device).expand(batch, -1, -1, -1)
    if kind == "dynamic":
        cache: Cache = DynamicCache(config=config)
        for index in range(config.num_hidden_layers):
            cache.update(past.clone(), past.clone(), index)
        return cache
    cache = StaticCache(config=config, max_cache_len=depth + room)
    cache.early_initialization(batch, heads, size, base.dtype, base.device)
    for layer in cache.layers:
        layer.keys[:, :, :depth], layer.values[:, :, :depth] = past, past
        layer.cumulative_length.fill_(depth)
    return cache


def generate_round(
    model: Any,
    base: PreTrainedModel,
    kind: str,
    *,
    batch: int,
    depth: int,
    steps: int,
    warm_up: int = WARM_UP,
    **options: Any,
) -> tuple[float, float]:
    """Mean seconds, wall and CPU, of a round of `generate` that continues from `depth` tokens.

    Args:
        model: that generates, `base` or a PEFT model around it.
        base: the transformers model.
        kind: of the cache.
        batch: rows.
        depth: tokens seen.
        steps: rounds that count.
        warm_up: rounds before them.
        options: of `generate`.
    """
    tokens = steps + warm_up + 1
    cache = prefilled_cache(kind, base, batch, depth, tokens + 1)
    rows = [[FIRST_PLAIN_TOKEN] * (depth + 1)] * batch
    with RoundClock(base.get_decoder(), base.device) as clock:
        sample_generate(model, rows, tokens, **cache_keyword(base, cache), **options)
    assert (clock.rounds, int(cache.get_seq_length())) == (tokens - 1, depth + tokens)
    return sum(clock.seconds[-steps:]) / steps, sum(clock.cpu_seconds[-steps:]) / steps
