"""The name under which a transformers module takes its cache: `past_key_values`, from 5.24 on `cache`.

Which one it is is read off the signature of the module's own `forward`, never off a version. Whatever gives a cache to
a backbone, to a decoder layer or to `generate`, and whatever looks for one among keyword arguments, goes through here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

CACHE_ARGUMENTS = ("cache", "past_key_values")


def cache_argument(module: nn.Module) -> str:
    """The name of the argument that takes the cache.

    Args:
        module: a causal language model, its backbone or a decoder layer.

    Raises:
        ValueError: if its class takes a cache under none of the known names.
    """
    kind = type(module)
    accepted = inspect.signature(kind.forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in accepted:
            return name
    raise ValueError(
        f"{kind.__name__}.forward takes a cache under none of the names {list(CACHE_ARGUMENTS)}, its arguments are "
        f"{list(accepted)}; install a version of transformers inside the range that pyproject.toml declares"
    )


def cache_keyword(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The cache as a keyword argument of `module`: `module(input_ids, **cache_keyword(module, cache))`.

    Raises:
        ValueError: see `cache_argument`.
    """
    return {cache_argument(module): cache}


def given_cache(keywords: Mapping[str, Any]) -> Any:
    """The cache among keyword arguments, under whichever name it came; None if there is none."""
    return next((keywords[name] for name in CACHE_ARGUMENTS if keywords.get(name) is not None), None)
