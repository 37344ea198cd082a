"""The model of an evaluation: an adapter under its own cache or another one, or the base alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.config import ThoughtConfig
from thoughtcache.recipes.bounded import BoundedModel
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.report.progress import loading


def model_name(run: EvalRun) -> str:
    """Folder or hub id of the base model."""
    return str(run.packaged_model()) if run.model is None else run.model


def bounded_model(run: EvalRun) -> BoundedModel:
    """Which model is asked, and under which cache.

    Raises:
        ValueError: for a setting of evictions where there are none.
    """
    return BoundedModel(
        model=model_name(run),
        adapter=run.adapter,
        dtype=run.dtype,
        tokenizer=run.tokenizer,
        window=run.window,
        evict_fraction=run.evict_fraction,
        positions=run.positions,
        eviction=run.eviction,
        eviction_options=run.eviction_options,
        eviction_budgets=run.eviction_budgets,
    )


class SharedBase:
    """One base model for several runs: it is loaded once, gets the adapter of each run, and is given back without it.

    Not covered: runs with another base model or dtype than the first one.
    """

    def __init__(self) -> None:
        self._base: Any = None

    @contextmanager
    def opened(
        self, run: EvalRun, console: Console | None = None
    ) -> Iterator[tuple[PeftModel, PreTrainedTokenizerBase, ThoughtConfig]]:
        """The model that is asked inside this block, its tokenizer, and the settings of its adapter and cache.

        Args:
            run: the run.
            console: where it is said that the base is loaded; None says nothing.

        Raises:
            ValueError: if the model, the adapter, the tokenizer or the cache cannot be used.
        """
        with nullcontext() if console is None or self._base is not None else loading(model_name(run), console):
            model, tokenizer, config = bounded_model(run).load(self._base)
        try:
            with nullcontext() if run.adapter is not None else model.disable_adapter():
                yield model, tokenizer, config
        finally:
            self._base = model.unload()
