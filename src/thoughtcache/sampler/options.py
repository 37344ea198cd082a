"""The arguments of a `rollout` call that can be sent to another process: everything but callables and row numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Required, TypedDict

from transformers import PreTrainedTokenizerBase

from thoughtcache.policy.modes import Place


class RolloutOptions(TypedDict, total=False):
    """Keyword arguments of `rollout`, meant and defaulted as there."""

    max_new_tokens: Required[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | Sequence[int]
    ignore_eos: bool
    min_new_tokens: int
    window: int | str | None
    batch_size: int | None
    stop_ids: Sequence[int] | None
    stop_strings: str | Sequence[str]
    tokenizer: PreTrainedTokenizerBase | None
    record_kv: Place | None
    anchors: bool
    max_record_bytes: int | None
    compile: bool
    pack_weights: bool
