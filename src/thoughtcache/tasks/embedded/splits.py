"""A train/val/test split that is a pure function of the prompt text.

The split of a problem is decided by a hash of its prompt, so nothing needs to be stored: a generator draws
problems and keeps those of the split it was asked for. A prompt is never in two splits, whatever the seed,
the task or the order of generation.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeGuard, get_args

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)
VAL_PERCENT = 5
TEST_PERCENT = 5


def _is_split(name: str) -> TypeGuard[Split]:
    return name in SPLITS


def require_split(name: str) -> Split:
    """Return `name` as a `Split`; raise `ValueError` if it is not one of `SPLITS`."""
    if not _is_split(name):
        raise ValueError(f"split is {name!r}, allowed: {', '.join(map(repr, SPLITS))}; pass one of these.")
    return name


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to: about 90 % train, 5 % val, 5 % test (uniform over prompts)."""
    digest = hashlib.blake2b(prompt.encode("utf-8"), digest_size=8).digest()
    percentile = int.from_bytes(digest, "big") % 100
    if percentile < VAL_PERCENT:
        return "val"
    if percentile < VAL_PERCENT + TEST_PERCENT:
        return "test"
    return "train"
