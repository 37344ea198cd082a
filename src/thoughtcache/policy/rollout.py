"""Execution 1: sampling token by token under the bounded cache.

The flow of one step (`engine.py`): where a window is full the cache evicts and absorbs (`cache/`, `state/`), the
adapter reads the state (`adapter/`), the head gives the distribution (`token_logprobs.py`), a token is drawn
(`sampling.py`), and what the learner needs to repeat the step is recorded (`records.py`). The learner: `replay.py`.

Not covered: compiled decoding, top-k/top-p (the learner scores the plain distribution).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import nn

from thoughtcache.cache.bounded_cache import AbsorbFn
from thoughtcache.cache.schedule import evict_count
from thoughtcache.policy.engine import Engine
from thoughtcache.policy.handle import PolicyHandle, open_policy
from thoughtcache.policy.kv_log import Place, check_place
from thoughtcache.records import Rollout, SamplingSettings

FROM_CONFIG: Final = "config"


@torch.no_grad()
def rollout(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    window: int | str | None = FROM_CONFIG,
    batch_size: int | None = None,
    stop_ids: Sequence[int] | None = None,
    kv_log: Place | None = None,
    rows: Sequence[int] | None = None,
    wrap_absorb: Callable[[AbsorbFn], AbsorbFn] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """Sample one thought sequence per prompt.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter; inside `disable_adapter()` the base model is sampled.
        prompt_ids: token ids, one list per prompt, of unequal lengths.
        max_new_tokens: bound on the thought tokens of each row.
        temperature: of the sampled and scored distribution; 0 decodes greedily.
        seed: row `i` draws from `(seed, i)`, independent of its neighbours and of `batch_size`.
        ignore_eos: go on past end-of-sequence tokens.
        window: resident thoughts instead of the adapter's own: an integer, "prompt" or None for the full cache.
        batch_size: slots: sequences decoded at once, all of them by default. A slot whose sequence ends takes the next
            prompt at once.
        stop_ids: tokens that end a row, instead of the end-of-sequence tokens that the model declares.
        kv_log: record the keys and values of all tokens on the "device" or the "host", and the entropies, so that
            `replay(reuse=True)` needs no forward pass of its own; None records neither.
        rows: sample only these prompts, by number; seeds, the resolved window and all checks are those of the whole
            call, so that a call can be split over several processes. All of them by default.
        wrap_absorb: decorates the function that absorbs an evicted block, to time it for example.
        progress: called with the number of rows that were finished.

    Returns:
        One `Rollout` per prompt, in order; with `rows`, one per row, in the order of `rows`.

    Raises:
        ValueError: for an empty prompt, a length beyond the model's positions, or values out of range.
    """
    policy = open_policy(model)
    if kv_log is not None:
        check_place(kv_log)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 sequence or None, got {batch_size}")
    settings = _settings(policy, prompt_ids, max_new_tokens, temperature, seed, ignore_eos, window)
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise ValueError(f"prompt {row} is empty; every prompt needs at least one token")
    if not prompt_ids:
        raise ValueError("no prompts were given; pass at least one list of token ids")
    chosen = range(len(prompt_ids)) if rows is None else rows
    if not chosen or min(chosen) < 0 or max(chosen) >= len(prompt_ids):
        raise ValueError(f"rows must be numbers from 0 to {len(prompt_ids) - 1}, at least one, got {list(chosen)}")
    engine = Engine(
        policy,
        [prompt_ids[row] for row in chosen],
        settings,
        _stop_ids(policy, settings) if stop_ids is None or ignore_eos else list(stop_ids),
        row_numbers=chosen,
        num_slots=min(batch_size or len(chosen), len(chosen)),
        kv_log=kv_log,
        wrap_absorb=wrap_absorb,
        progress=progress,
    )
    return engine.run()


def _settings(
    policy: PolicyHandle,
    prompt_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    ignore_eos: bool,
    window: int | str | None,
) -> SamplingSettings:
    config = policy.tuner.thought_config
    longest = max((len(row) for row in prompt_ids), default=0)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or positive, got {temperature}")
    if policy.max_positions is not None and longest + max_new_tokens > policy.max_positions:
        raise ValueError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, together more than the "
            f"{policy.max_positions} positions of the model; shorten either, or load the model with rope scaling"
        )
    wanted = config.window if window == FROM_CONFIG else window
    resolved = longest if wanted == "prompt" else wanted
    if resolved is not None and not isinstance(resolved, int):
        raise ValueError(f'window={wanted!r} is not known; use an integer >= 1, "prompt" or None')
    return SamplingSettings(
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        window=resolved,
        num_evicted=None if resolved is None else evict_count(resolved, config.evict_fraction),
        eviction=config.eviction,
        seed=seed,
        ignore_eos=ignore_eos,
    )


def _stop_ids(policy: PolicyHandle, settings: SamplingSettings) -> list[int]:
    """End-of-sequence tokens that the model declares; none if they are to be ignored."""
    if settings.ignore_eos:
        return []
    declared = policy.tuner.model.generation_config.eos_token_id
    if declared is None:
        return []
    return [declared] if isinstance(declared, int) else list(declared)
