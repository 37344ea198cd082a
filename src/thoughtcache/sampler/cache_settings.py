"""The cache under which sequences are sampled: the window of a call, or the adapter's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from thoughtcache.cache.schedule import evict_count
from thoughtcache.config import ThoughtConfig

FROM_CONFIG: Final = "config"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """What all sequences of a sampler share; fields as in `SamplingSettings`."""

    window: int | None
    num_evicted: int | None
    eviction: str
    positions: Literal["absolute", "rolling"]


def cache_settings(
    config: ThoughtConfig, window: int | str | None = FROM_CONFIG, *, longest_prompt: int | None
) -> CacheSettings:
    """The window as an integer, and what follows from it.

    Args:
        config: of the adapter.
        window: resident thoughts instead of the adapter's own.
        longest_prompt: what "prompt" stands for; None where no prompt is known.

    Raises:
        ValueError: for an unknown window, or "prompt" without prompts.
    """
    wanted = config.window if window == FROM_CONFIG else window
    resolved = longest_prompt if wanted == "prompt" and longest_prompt is not None else wanted
    if resolved is not None and not isinstance(resolved, int):
        here = "" if longest_prompt is not None else ' ("prompt" has no meaning before the prompts are known)'
        raise ValueError(f'window={wanted!r} is not known{here}; use an integer >= 1, "prompt" or None')
    return CacheSettings(
        window=resolved,
        num_evicted=None if resolved is None else evict_count(resolved, config.evict_fraction),
        eviction=config.eviction,
        positions="rolling" if config.positions == "rolling" and resolved is not None else "absolute",
    )
