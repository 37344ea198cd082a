"""Settings of `thoughtcache perplexity`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from thoughtcache.adapter.support import DTYPES
from thoughtcache.cache.eviction import OptionValue
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.config import OWN_WINDOW
from thoughtcache.recipes.bounded import BoundedModel


@dataclass(frozen=True, kw_only=True)
class PerplexityRun:
    """Each field is an option of `thoughtcache perplexity`.

    Attributes:
        model: transformers folder or hub id.
        adapter: folder of an adapter; None for the base alone.
        dtype: dtype of the base model.
        text: file with running text, which is cut into pieces.
        tokens: file of JSON lines with token ids, "prompt" and "thought"; instead of it.
        num_texts: texts at most.
        prompt_tokens: with `text`, first tokens of a piece, which stay in the cache and are not predicted.
        length: thoughts of every piece; texts of token ids are cut to it. None keeps them whole, and makes pieces of
            512.
        window: see `BoundedModel`, as the next five.
        evict_fraction: share of the window that leaves.
        positions: "absolute" or "rolling".
        eviction: eviction policy.
        eviction_options: settings of that policy.
        eviction_budgets: thoughts of every layer.
        batch_size: texts that a policy that chooses reads at once.
        output_dir: folder for perplexity.json, perplexity.md and perplexity.png.
        seed: seed of eviction policies that draw.
        overwrite: replace an earlier result.

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    model: str
    adapter: str | None = None
    dtype: str = "float32"
    text: str | None = None
    tokens: str | None = None
    num_texts: int = 16
    prompt_tokens: int = 16
    length: int | None = None
    window: int | str | None = OWN_WINDOW
    evict_fraction: float | None = None
    positions: str | None = None
    eviction: str | None = None
    eviction_options: Mapping[str, OptionValue] | None = None
    eviction_budgets: str | list[int] | list[list[int]] | None = None
    batch_size: int = 8
    output_dir: str = "runs/perplexity"
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        at_least_one(self, "num_texts", "prompt_tokens", "batch_size")
        at_least_one(self, "length", optional=True)
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give either text, a file that is cut into pieces, or tokens, a file of token ids")

    @property
    def bounded(self) -> BoundedModel:
        """Which model, under which cache."""
        return BoundedModel(
            model=self.model,
            adapter=self.adapter,
            dtype=self.dtype,
            window=self.window,
            evict_fraction=self.evict_fraction,
            positions=self.positions,
            eviction=self.eviction,
            eviction_options=self.eviction_options,
            eviction_budgets=self.eviction_budgets,
        )
