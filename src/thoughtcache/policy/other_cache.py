"""The base model under another cache than the adapter's: another adapter, which changes nothing but the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel

from thoughtcache.cache.schedule import num_evictions
from thoughtcache.config import ThoughtConfig

_NAME = "arm"
TEACHER_CACHE = ("window", "evict_fraction", "eviction", "eviction_options")
"""Settings of the cache under which the teacher of distillation may sample."""


def changes_nothing(**cache: Any) -> ThoughtConfig:
    """Settings of an adapter that leaves the base model as it is under a cache.

    Args:
        cache: settings of the cache: window, evict_fraction, positions, eviction, eviction_options, eviction_budgets.
    """
    return ThoughtConfig(
        target_modules=["q_proj"], r=1, num_global_tokens=1, initial_state="identity", absorb=False, **cache
    )


@contextmanager
def under_adapter(model: PeftModel, config: ThoughtConfig) -> Iterator[None]:
    """Put another, new adapter in the place of the active one inside this block.

    Args:
        model: the adapted model; what is trained in it is what was before, after the block.
        config: settings of the other one, such as those of `changes_nothing`.
    """
    before = str(model.active_adapter)
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # its factors are drawn and never used
        model.add_adapter(_NAME, config)
    try:
        model.set_adapter(_NAME)
        yield
    finally:
        model.set_adapter(before)
        model.delete_adapter(_NAME)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def check_teacher_cache(cache: Mapping[str, Any] | None, max_new_tokens: int | None = None) -> None:
    """Refuse settings that make no bounded cache for a teacher that samples; None is the full one.

    Args:
        cache: settings of `ThoughtConfig`: a window, and how it evicts.
        max_new_tokens: bound on the tokens of a text; None where it is not known yet.

    Raises:
        ValueError: for another setting, no window, a value out of range, or a window that holds every text.
    """
    if cache is None:
        return
    if set(cache) - set(TEACHER_CACHE) or not isinstance(cache.get("window"), int):
        raise ValueError(
            f"teacher_cache is {cache_text(cache)!r}, and the cache of a teacher is full, or has a window, which is an "
            f"integer, and may have {', '.join(TEACHER_CACHE[1:])}; write for example window=512,eviction=h2o"
        )
    changes_nothing(**cache)
    if max_new_tokens is not None and not ever_evicts(cache, max_new_tokens):
        raise ValueError(
            f"teacher_cache is {cache_text(cache)!r}, which holds every text of max_new_tokens={max_new_tokens}, as "
            f"the full cache does; set its window below {max(2, max_new_tokens - 1)}, or leave teacher_cache out"
        )


def ever_evicts(cache: Mapping[str, Any], max_new_tokens: int) -> bool:
    """Whether the cache of a teacher evicts anything of a text of so many tokens, whose last one it never holds."""
    settings = changes_nothing(**cache).resolve_window(None)
    return num_evictions(max_new_tokens - 1, settings.smallest_budget, settings.num_evicted) > 0


def cache_text(cache: Mapping[str, Any]) -> str:
    """Settings of a cache as the command line takes them: `window=512,eviction=h2o`."""
    words = []
    for name, value in cache.items():
        if name == "eviction_options":
            words += [f"eviction-option={key}={str(one).lower()}" for key, one in value.items()]
        else:
            words.append(f"{name.replace('_', '-')}={value}")
    return ",".join(words)
