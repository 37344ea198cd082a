"""Decides where a sequence ends and where a prompt ends, for every command, trainer and sampler.

A sequence ends with an end-of-sequence token of the model *or* of its tokenizer. They often differ: a chat model ends a
turn with a token that its base model never heard of. TRL takes the union, and so does all of this project. A caller
without a tokenizer (`rollout` without one) knows the model's tokens alone.
A prompt never ends with an end-of-sequence token that the tokenizer appends (`add_eos_token`): the thought begins
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class EndingTokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    eos_token_id: Any

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        """Tokenize a text."""


def stop_token_ids(declared: int | Sequence[int] | None, tokenizer: EndingTokenizer | None) -> list[int]:
    """The tokens that end a sequence, each once; empty if neither side names one.

    Args:
        declared: token ids that the model declares in `generation_config.eos_token_id`, or None.
        tokenizer: tokenizer of the model, or None if the caller has none.
    """
    own = [] if tokenizer is None or tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    models = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([*own, *models]))


def prompt_token_ids(tokenizer: EndingTokenizer, text: str) -> list[int]:
    """Tokens of a prompt's text, with the special tokens that the tokenizer puts in front and none that it appends.

    Args:
        tokenizer: tokenizer of the model.
        text: what the model continues; an end-of-sequence token that is written in it stays.
    """
    ids = [int(token) for token in tokenizer(text)["input_ids"]]
    end = tokenizer.eos_token_id
    if not ids or ids[-1] != end:
        return ids
    written = [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    appended = _count_last(ids, end) - _count_last(written, end)
    return ids[: len(ids) - max(0, appended)]


def _count_last(ids: Sequence[int], token: int) -> int:
    """How many times a token is repeated at the end."""
    return next((count for count, other in enumerate(reversed(ids)) if other != token), len(ids))
