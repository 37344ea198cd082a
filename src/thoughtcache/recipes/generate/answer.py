"""One answer of a saved adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thoughtcache.recipes.generate.asking import Asking, Speaker


def answer(*, prompt: str, tell: Callable[[str], None] | None = None, **settings: Any) -> str:
    """The answer of a saved adapter to one question, under its own window, of the prompt as it was trained on.

    Args:
        prompt: the question.
        tell: gets the text piece by piece while it is made.
        settings: fields of `Asking`.

    Raises:
        ValueError: as `Speaker` and `Speaker.answer`.
    """
    return Speaker(Asking(**settings)).answer([{"role": "user", "content": prompt}], tell)
