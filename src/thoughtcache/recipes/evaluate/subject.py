"""The model of an evaluation: an adapter under its own cache or another one, or the base alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from thoughtcache.config import OWN_WINDOW, ThoughtConfig
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.load_adapter import load_adapted
from thoughtcache.recipes.load_model import load_base, load_tokenizer, read_tokenizer
from thoughtcache.tasks.embedded.reasoner import REASONER_FOLDER


def model_name(run: EvalRun) -> str:
    """Folder or hub id of the base model."""
    return str(REASONER_FOLDER) if run.model is None else run.model


def cache_changes(run: EvalRun) -> dict[str, Any]:
    """The settings of the cache that were asked for, but for the full cache, which is chosen when it is sampled."""
    changes = {"evict_fraction": run.evict_fraction, "positions": run.positions}
    if run.window is not None and run.window != OWN_WINDOW:
        changes["window"] = run.window
    return {name: value for name, value in changes.items() if value is not None}


def base_config(run: EvalRun) -> ThoughtConfig:
    """The cache of the base alone, as an adapter that changes nothing.

    Raises:
        ValueError: if the cache has no meaning.
    """
    policy = {"eviction": run.eviction, "eviction_options": run.eviction_options}
    given = {**cache_changes(run), **{name: value for name, value in policy.items() if value is not None}}
    return ThoughtConfig(r=1, num_global_tokens=1, initial_state="identity", absorb=False, **{"window": None, **given})


@contextmanager
def opened(run: EvalRun) -> Iterator[tuple[PeftModel, PreTrainedTokenizerBase, ThoughtConfig]]:
    """The model that is asked inside this block, its tokenizer, and the settings of its adapter and cache.

    Raises:
        ValueError: if the model, the adapter, the tokenizer or the cache cannot be used.
    """
    name = model_name(run)
    if run.adapter is not None:
        model, tokenizer = load_adapted(
            name,
            run.adapter,
            run.dtype,
            eviction=run.eviction,
            eviction_options=run.eviction_options,
            cache=cache_changes(run),
        )
        config = model.peft_config[model.active_adapter]
        assert isinstance(config, ThoughtConfig)
        yield model, _tokenizer(run, tokenizer), config
        return
    config = base_config(run)
    _, tokenizer = load_tokenizer(name)
    model = peft.get_peft_model(load_base(name, run.dtype), config).eval()
    with model.disable_adapter():
        yield model, _tokenizer(run, tokenizer), config


def _tokenizer(run: EvalRun, own: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return own if run.tokenizer is None else read_tokenizer(run.tokenizer)
