"""A model under a bounded cache: an adapter under its own cache or another one, or the base alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import peft
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from thoughtcache.cache.eviction import OptionValue
from thoughtcache.config import OWN_WINDOW, ThoughtConfig
from thoughtcache.recipes.load_adapter import load_adapted, read_adapter, with_changes
from thoughtcache.recipes.load_model import load_base, load_tokenizer, read_tokenizer
from thoughtcache.records import CacheSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundedModel:
    """Which model, and under which cache.

    Attributes:
        model: folder or hub id of the base model.
        adapter: folder of an adapter; None for the base alone.
        dtype: dtype of the base model.
        tokenizer: folder or hub id of another tokenizer than that of the adapter or the model.
        window: resident thoughts: an integer, "prompt" or None for the full cache; `OWN_WINDOW` is that of the adapter,
            and the full cache for the base.
        evict_fraction: share of the window that leaves when it is full; None for the adapter's own, 0.25 for the base.
        positions: "absolute" or "rolling"; None for the adapter's own, "absolute" for the base.
        eviction: eviction policy; None for the adapter's own, "sliding" for the base.
        eviction_options: settings of that policy.
        eviction_budgets: thoughts of every layer, as in `ThoughtConfig`, or "even"; None for the adapter's own, "even"
            for the base.

    Raises:
        ValueError: for a setting of evictions where there are none.
    """

    model: str
    adapter: str | None = None
    dtype: str = "float32"
    tokenizer: str | None = None
    window: int | str | None = OWN_WINDOW
    evict_fraction: float | None = None
    positions: str | None = None
    eviction: str | None = None
    eviction_options: Mapping[str, OptionValue] | None = None
    eviction_budgets: str | list[int] | list[list[int]] | None = None

    def __post_init__(self) -> None:
        if self.window is None or (self.adapter is None and self.window == OWN_WINDOW):
            for name in ("evict_fraction", "positions", "eviction", "eviction_options", "eviction_budgets"):
                value = getattr(self, name)
                if value:
                    raise ValueError(
                        f"{name}={value!r} changes nothing with the full cache, where nothing is evicted; leave it "
                        "out, or give a window"
                    )

    @property
    def cache_changes(self) -> dict[str, Any]:
        """The settings of the cache that were asked for, but for the full cache, which is chosen when it is used."""
        changes: dict[str, Any] = {
            "evict_fraction": self.evict_fraction,
            "positions": self.positions,
            "eviction_budgets": self.eviction_budgets,
        }
        if self.window is not None and self.window != OWN_WINDOW:
            changes["window"] = self.window
        return {name: value for name, value in changes.items() if value is not None}

    def base_config(self) -> ThoughtConfig:
        """The cache of the base alone, as an adapter that changes nothing.

        Raises:
            ValueError: if the cache has no meaning.
        """
        policy = {"eviction": self.eviction, "eviction_options": self.eviction_options}
        given = {**self.cache_changes, **{name: value for name, value in policy.items() if value is not None}}
        return ThoughtConfig(
            r=1, num_global_tokens=1, initial_state="identity", absorb=False, **{"window": None, **given}
        )

    def config(self) -> ThoughtConfig:
        """The settings of adapter and cache, from the adapter's files; the base is not loaded.

        The full cache beside an adapter is chosen when it is used, and not among them.

        Raises:
            ValueError: if the adapter or the cache cannot be used.
        """
        if self.adapter is None:
            return self.base_config()
        policy = {"eviction": self.eviction, "eviction_options": self.eviction_options}
        given = {name: value for name, value in policy.items() if value is not None}
        return with_changes(read_adapter(self.adapter)[0], {**self.cache_changes, **given})

    def load(self, base: Any = None) -> tuple[PeftModel, PreTrainedTokenizerBase, ThoughtConfig]:
        """The model, its tokenizer, and the settings of its adapter and cache.

        Without an adapter the model carries one that changes nothing.

        Args:
            base: the base model, where it is loaded already.

        Raises:
            ValueError: if the model, the adapter, the tokenizer or the cache cannot be used.
        """
        if self.adapter is not None:
            model, tokenizer = load_adapted(
                self.model,
                self.adapter,
                self.dtype,
                eviction=self.eviction,
                eviction_options=self.eviction_options,
                cache=self.cache_changes,
                base=base,
            )
            config = model.peft_config[model.active_adapter]
            assert isinstance(config, ThoughtConfig)
        else:
            config = self.base_config()
            _, tokenizer = load_tokenizer(self.model)
            base = load_base(self.model, self.dtype) if base is None else base
            model = peft.get_peft_model(base, config).eval()
        return model, tokenizer if self.tokenizer is None else read_tokenizer(self.tokenizer), config


def cache_text(cache: CacheSettings) -> str:
    """A cache in a few words: `window 16, h2o, budgets 4 to 28`."""
    if cache.window is None:
        return "full cache"
    budgets = "" if cache.budgets is None else f", budgets {cache.smallest_budget} to {cache.largest_budget}"
    return f"window {cache.window}, {cache.eviction}{budgets}"
