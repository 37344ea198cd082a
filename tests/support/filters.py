"""The filters of transformers, as `generate` would apply them."""

from __future__ import annotations

from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from thoughtcache.records import TokenFilters


def processors(filters: TokenFilters, temperature: float, prompt_length: int, stops: list[int]) -> LogitsProcessorList:
    """What `generate` would build, in its order."""
    found = LogitsProcessorList()
    if filters.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(filters.repetition_penalty))
    if filters.min_new_tokens > 0:
        found.append(MinNewTokensLengthLogitsProcessor(prompt_length, filters.min_new_tokens, stops))
    found.append(TemperatureLogitsWarper(temperature))
    if filters.top_k > 0:
        found.append(TopKLogitsWarper(filters.top_k))
    if filters.top_p < 1.0:
        found.append(TopPLogitsWarper(filters.top_p))
    if filters.min_p > 0.0:
        found.append(MinPLogitsWarper(filters.min_p))
    return found
