"""Execution 1: sampling token by token under the bounded cache.

The flow of one step (`engine.py`): where a window is full the cache evicts and absorbs (`cache/`, `state/`), the
adapter reads the state (`adapter/`), the head gives the distribution (`policy/token_logprobs.py`), a token is drawn
(`drawing.py`), and what the learner needs to repeat the step is recorded (`records.py`). Who repeats it: `learner/`.

Filters (top-k and the like) are for sampling only: the learner scores the distribution without them, and training
refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from thoughtcache.adapter.positions import check_positions
from thoughtcache.cache.schedule import evict_count
from thoughtcache.ends import stop_token_ids
from thoughtcache.policy.handle import PolicyHandle, open_policy
from thoughtcache.policy.modes import Place, check_place
from thoughtcache.policy.token_ids import check_prompts, check_stop_ids
from thoughtcache.records import Rollout, SamplingSettings, TokenFilters
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.inverse_cdf import row_seeds
from thoughtcache.sampler.record_bytes import check_record_bytes, item_bytes, record_bytes
from thoughtcache.sampler.slots.slot_cache import EvictFn
from thoughtcache.sampler.stop_strings import make_stop_strings

FROM_CONFIG: Final = "config"


@torch.no_grad()
def rollout(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | Sequence[int] = 0,
    ignore_eos: bool = False,
    min_new_tokens: int = 0,
    window: int | str | None = FROM_CONFIG,
    batch_size: int | None = None,
    stop_ids: Sequence[int] | None = None,
    stop_strings: str | Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    kv_log: Place | None = None,
    anchors: bool = True,
    max_record_bytes: int | None = None,
    compile: bool = False,
    pack_weights: bool = True,
    rows: Sequence[int] | None = None,
    wrap_eviction: Callable[[EvictFn], EvictFn] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """Sample one thought sequence per prompt.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter; inside `disable_adapter()` the base model is sampled.
        prompt_ids: token ids, one list per prompt, of unequal lengths.
        max_new_tokens: bound on the thought tokens of each row.
        temperature: of the sampled and scored distribution; 0 decodes greedily.
        top_k: draw from the most likely tokens only; see `TokenFilters`, as the next three. With any of them on,
            `Rollout.sampled_logprobs` is recorded beside `Rollout.logprobs`.
        top_p: draw from the most likely tokens that hold this probability together.
        min_p: draw from tokens that are at least so likely relative to the most likely one.
        repetition_penalty: discourages (above 1) tokens of the prompt and of the thoughts so far.
        seed: row `i` draws from `(seed, i)`, independent of its neighbours and of `batch_size`. One seed per prompt
            instead: each row is the one that a call of its own with its seed would give.
        ignore_eos: go on past end-of-sequence tokens.
        min_new_tokens: the first so many thought tokens are no stop tokens and end no sequence.
        window: resident thoughts instead of the adapter's own: an integer, "prompt" or None for the full cache.
        batch_size: slots: sequences decoded at once, all of them by default. A slot whose sequence ends takes the next
            prompt at once.
        stop_ids: tokens that end a row, instead of the end-of-sequence tokens of the model and of `tokenizer`.
        stop_strings: texts that end a row, whether tokens are ignored or not: it ends with the token that completes
            the first of them in the text of its thoughts, special tokens included.
        tokenizer: of the model. It makes that text, and its end-of-sequence token ends a row as those that the model
            declares do; without it only the model's are known. Needed with `stop_strings`.
        kv_log: record the keys and values of all tokens on the "device" or the "host", and the entropies, so that
            `replay(reuse=True)` needs no forward pass of its own; None records neither.
        anchors: record the thought states after each eviction (`Rollout.states`), which keep a replay on the sampled
            path; they grow with the length. A rollout that no learner will repeat can do without.
        max_record_bytes: refuse the call if what its rollouts carry (states, evicted slots, keys and values, scores;
            on the device and on the host) could outgrow this, were every row to reach `max_new_tokens`.
        compile: static shapes, and decode and eviction steps compiled by `torch.compile`; the first rounds of a new
            shape take as long as compiling does, and every slot costs the same whether it is full or free.
        pack_weights: on a CPU, decode from a copy of the weights in the layout that is fastest there (fp32 and bf16;
            the same up to rounding); False saves the memory of the copy. Nothing elsewhere, or with `compile`.
        rows: sample only these prompts, by number; seeds, the resolved window and all checks are those of the whole
            call, so that a call can be split over several processes. All of them by default.
        wrap_eviction: decorates the function that evicts (choice, move and absorption), to time it for example.
        progress: called with the number of rows that were finished.

    Returns:
        One `Rollout` per prompt, in order; with `rows`, one per row, in the order of `rows`.

    Raises:
        ValueError: for an empty prompt, prompts that are no lists of the model's token ids, a length beyond the model's
            positions, values out of range, or records that could outgrow `max_record_bytes`.
        RuntimeError: if this model is sampling already.
    """
    policy = open_policy(model)
    if kv_log is not None:
        check_place(kv_log)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 sequence or None, got {batch_size}")
    check_prompts(prompt_ids, policy)
    if stop_ids is not None:
        check_stop_ids(stop_ids, policy)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    texts = make_stop_strings(stop_strings, tokenizer)
    seeds = row_seeds(seed, len(prompt_ids))
    filters = TokenFilters(
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        min_new_tokens=min_new_tokens,
    )
    _check_filters(filters, temperature, max_new_tokens)
    resolved, num_evicted = _window(policy, prompt_ids, window)
    settings = SamplingSettings(
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        window=resolved,
        num_evicted=num_evicted,
        eviction=policy.tuner.thought_config.eviction,
        seed=seeds[0][0],
        ignore_eos=ignore_eos,
        filters=filters,
        stop_strings=() if texts is None else texts.strings,
        positions="rolling" if policy.tuner.thought_config.positions == "rolling" and resolved else "absolute",
    )
    longest = max(map(len, prompt_ids))
    check_positions(longest, max_new_tokens, policy.reach, rolling_window=settings.rolling_window)
    if max_record_bytes is not None:
        lengths = [len(ids) for ids in prompt_ids]
        items = item_bytes(policy, settings, keys_values=kv_log is not None, anchors=anchors)
        needed = record_bytes(items, lengths, [max_new_tokens] * len(lengths), resolved, num_evicted)
        check_record_bytes(needed, max_record_bytes, len(lengths))
    chosen = range(len(prompt_ids)) if rows is None else rows
    if not chosen or min(chosen) < 0 or max(chosen) >= len(prompt_ids):
        raise ValueError(f"rows must be numbers from 0 to {len(prompt_ids) - 1}, at least one, got {list(chosen)}")
    engine = Engine(
        policy,
        [prompt_ids[row] for row in chosen],
        settings,
        seeds=[seeds[row] for row in chosen],
        stop_ids=_stop_ids(policy, settings, tokenizer) if stop_ids is None or ignore_eos else list(stop_ids),
        stop_strings=texts,
        num_slots=min(batch_size or len(chosen), len(chosen)),
        kv_log=kv_log,
        anchors=anchors,
        compiled=compile,
        pack_weights=pack_weights,
        wrap_eviction=wrap_eviction,
        progress=progress,
    )
    return engine.run()


def _check_filters(filters: TokenFilters, temperature: float, max_new_tokens: int) -> None:
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or positive, got {temperature}")
    if temperature == 0 and filters.truncates:
        raise ValueError(
            f"top_k={filters.top_k}, top_p={filters.top_p} and min_p={filters.min_p} change nothing at temperature=0, "
            "which takes the most likely token; leave them out, or set a positive temperature"
        )
    if filters.min_new_tokens > max_new_tokens:
        raise ValueError(
            f"min_new_tokens must be at most max_new_tokens={max_new_tokens}, got {filters.min_new_tokens}; "
            "lower it or raise max_new_tokens"
        )


def _window(
    policy: PolicyHandle, prompt_ids: Sequence[Sequence[int]], window: int | str | None
) -> tuple[int | None, int | None]:
    """Resident thoughts and how many leave at once."""
    config = policy.tuner.thought_config
    wanted = config.window if window == FROM_CONFIG else window
    resolved = max(map(len, prompt_ids)) if wanted == "prompt" else wanted
    if resolved is None:
        return None, None
    if not isinstance(resolved, int):
        raise ValueError(f'window={wanted!r} is not known; use an integer >= 1, "prompt" or None')
    return resolved, evict_count(resolved, config.evict_fraction)


def _stop_ids(policy: PolicyHandle, settings: SamplingSettings, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """End-of-sequence tokens of the model and of its tokenizer; none if they are to be ignored."""
    if settings.ignore_eos:
        return []
    return stop_token_ids(policy.tuner.model.generation_config.eos_token_id, tokenizer)
