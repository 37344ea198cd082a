"""Caches in the tests: given to a model under the name that its class uses."""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.adapter.model import ThoughtModel


def given(model: Any, cache: Any) -> dict[str, Any]:
    """The cache as a keyword argument of a transformers model, wrapped by PEFT or not."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return cache_keyword(inner.model if isinstance(inner, ThoughtModel) else inner, cache)
