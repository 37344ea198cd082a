"""Decides, in one place, what counts as token ids: lists of Python integers that the model has.

Text, tensors, arrays, padded batches and flat lists are refused with what makes token ids of them, because each of them
can be read in more than one way (which of the zeros is padding?), and what travels and is recorded is plain integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number

import numpy as np
from torch import Tensor

from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.records import Rollout

_SHAPE = "pass one list of token ids per prompt"
_FROM_TEXT = 'tokenizer(texts)["input_ids"] makes them, without return_tensors and padding'
_OTHER_TOKENIZER = "take the tokenizer of this model, and leave out padding and label masks such as -100"
_OTHER_MODEL = "replay it with the model that sampled it"
_SHOWN = 40
"""Characters of a value that a message repeats."""


def check_prompts(prompt_ids: object, policy: PolicyHandle, *, purpose: str = "", kind: str = "prompt") -> None:
    """Refuse what is no list of token ids per prompt.

    Args:
        prompt_ids: what was given as prompts.
        policy: the parts of the model, whose vocabulary bounds the ids.
        purpose: what they are for, in the message that there are none.
        kind: what one of them is called.

    Raises:
        ValueError: if it is something else; the message names the value, its place, and what makes token ids of it.
    """
    if isinstance(prompt_ids, Mapping):
        raise ValueError(f'the prompts are {_told(prompt_ids)}; pass what stands in its ["input_ids"], unpadded')
    if isinstance(prompt_ids, str | bytes):
        raise ValueError(f"the prompts are the text {_told(prompt_ids)}; {_SHAPE}: {_FROM_TEXT}")
    if isinstance(prompt_ids, Tensor | np.ndarray):
        raise ValueError(
            f"the prompts are {_told(prompt_ids)}; {_SHAPE}, without padding: "
            "[row[mask == 1].tolist() for row, mask in zip(input_ids, attention_mask)]"
        )
    if not isinstance(prompt_ids, Sequence):
        raise ValueError(f"the prompts are {_told(prompt_ids)}; {_SHAPE}, all of them in a list")
    if not prompt_ids:
        raise ValueError(f"no prompts were given{purpose}; pass at least one list of token ids")
    for row, ids in enumerate(prompt_ids):
        if _is_number(ids):
            raise ValueError(
                f"prompt {row} is the single number {_told(ids)}; {_SHAPE}: [prompt_ids] if this is one prompt"
            )
        _check_ids(ids, f"{kind} {row}", vocabulary_size(policy), _OTHER_TOKENIZER, kind=kind)


def check_rollouts(rollouts: object, policy: PolicyHandle, *, may_be_empty: bool = False) -> None:
    """Refuse what is no list of rollouts, or holds tokens that the model has not.

    Args:
        rollouts: what was given as rollouts.
        policy: the parts of the model.
        may_be_empty: whether some of them may have no thought tokens.

    Raises:
        ValueError: if `rollouts` is refused; the message names the value and the remedy.
    """
    if isinstance(rollouts, Rollout):
        raise ValueError("a single rollout was given; pass a list: [rollout]")
    if not isinstance(rollouts, Sequence) or not all(isinstance(record, Rollout) for record in rollouts):
        raise ValueError(f"the rollouts are {_told(rollouts)}; pass the list that thoughtcache.rollout returned")
    if not rollouts:
        raise ValueError("no rollouts were given; pass at least one that thoughtcache.rollout returned")
    size = vocabulary_size(policy)
    for row, record in enumerate(rollouts):
        _check_ids(record.prompt_ids, f"the prompt of rollout {row}", size, _OTHER_MODEL)
        if record.token_ids:
            _check_ids(record.token_ids, f"rollout {row}", size, _OTHER_MODEL)
        elif not may_be_empty:
            raise ValueError(f"rollout {row} has no thought tokens; leave it out")


def check_stop_ids(stop_ids: object, policy: PolicyHandle) -> None:
    """Refuse stop tokens that end nothing because they are none of the model's.

    Args:
        stop_ids: what was given as stop tokens; none at all is fine.
        policy: the parts of the model.

    Raises:
        ValueError: if a stop token is refused; the message names the value and the remedy.
    """
    if _is_number(stop_ids):
        raise ValueError(f"stop_ids is the single number {_told(stop_ids)}; pass a list: [{stop_ids}]")
    if not isinstance(stop_ids, Sequence) or len(stop_ids):
        _check_ids(stop_ids, "stop_ids", vocabulary_size(policy), _OTHER_TOKENIZER)


def check_stop_sequences(sequences: Sequence[object], policy: PolicyHandle) -> None:
    """Refuse stop sequences that end nothing, or everything.

    Args:
        sequences: what was given as token sequences.
        policy: the parts of the model.

    Raises:
        ValueError: if one of them is empty or no list of the model's token ids; the message names it and the remedy.
    """
    for number, sequence in enumerate(sequences):
        if isinstance(sequence, Sequence) and not isinstance(sequence, str) and not sequence:
            raise ValueError(f"stop sequence {number} is empty and would end every sequence at once; leave it out")
        _check_ids(sequence, f"stop sequence {number}", vocabulary_size(policy), _OTHER_TOKENIZER)


def vocabulary_size(policy: PolicyHandle) -> int:
    """Tokens that the model has."""
    return int(policy.tuner.model.config.get_text_config().vocab_size)


def _check_ids(ids: object, name: str, size: int, remedy: str, *, kind: str = "prompt") -> None:
    """Refuse what is no list of token ids.

    Args:
        ids: what was given.
        name: name of the sequence that the ids belong to.
        size: tokens of the model.
        remedy: remedy against ids that the model has not.
        kind: what one such sequence is called.
    """
    if isinstance(ids, str | bytes):
        raise ValueError(f"{name} is the text {_told(ids)}; pass its token ids: {_FROM_TEXT}")
    if not isinstance(ids, Sequence):
        raise ValueError(f"{name} is {_told(ids)}; pass a list of token ids, of a tensor or an array its .tolist()")
    if not ids:
        raise ValueError(f"{name} is empty; every {kind} needs at least one token")
    if set(map(type, ids)) != {int}:
        place, wrong = next((place, value) for place, value in enumerate(ids) if type(value) is not int)
        raise ValueError(
            f"{name} holds {_told(wrong)} at place {place}; pass Python integers, of a tensor or an array its .tolist()"
        )
    if min(ids) < 0 or max(ids) >= size:
        place, wrong = next((place, value) for place, value in enumerate(ids) if not 0 <= value < size)
        raise ValueError(f"{name} holds token {wrong} at place {place}, the model has tokens 0 to {size - 1}; {remedy}")


def _is_number(value: object) -> bool:
    """Whether a value is one number of Python, numpy or torch."""
    return isinstance(value, Number) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)


def _told(value: object) -> str:
    """A value for a message: how it begins, or its shape, and its type."""
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    kind = type(value).__name__
    if isinstance(value, Tensor | np.ndarray) and value.ndim > 0:
        return f"one {kind} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'} ({kind})"
