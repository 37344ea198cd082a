"""One text of a recall task, as tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallEpisode:
    """A prompt, and thoughts of which the last ones are to be remembered.

    Attributes:
        prompt_ids: tokens of the prompt, which stay in the cache.
        token_ids: tokens of the thoughts; the last `num_answer` of them repeat what was said before.
        num_answer: tokens of the answer.
        num_evictions: evictions between what is to be remembered and the question, the one that takes its last token
            included; 0 if it is still there.
        num_between: tokens between what is to be remembered and the answer.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    num_answer: int
    num_evictions: int
    num_between: int
