"""Execution 1: sampling token by token under the bounded cache.

The flow of one step: the cache evicts and absorbs if it is full (`cache/`, `state/`), the adapter reads the state
(`adapter/`), the head gives the distribution (`token_logprobs.py`), a token is drawn (`sampling.py`), and what the
learner needs to repeat the step is recorded (`records.py`). The learner's side is `replay.py`.

Not covered: continuous batching (rows that end keep their slot), compiled decoding, top-k/top-p (the learner scores
the plain distribution).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from thoughtcache.cache import BoundedCache
from thoughtcache.cache.bounded_cache import AbsorbFn
from thoughtcache.cache.kv_recorder import KVRecorder
from thoughtcache.cache.schedule import evict_count, eviction_points, resident_thoughts
from thoughtcache.policy.batch import pad_prompts
from thoughtcache.policy.handle import PolicyHandle, open_policy
from thoughtcache.policy.kv_log import Place, check_place
from thoughtcache.policy.sampling import sample_tokens, uniform_numbers
from thoughtcache.policy.token_logprobs import entropy_of, scaled_log_softmax
from thoughtcache.records import Eviction, Rollout, SamplingSettings

FROM_CONFIG: Final = "config"
_STEPS_BETWEEN_STOP_CHECKS = 16


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
        batch_size: rows decoded at once; all of them by default.
        stop_ids: tokens that end a row, instead of the end-of-sequence tokens that the model declares.
        kv_log: record the keys and values of all tokens on the "device" or the "host", and the entropies, so that
            `replay(reuse=True)` needs no forward pass of its own; None records neither.
        wrap_absorb: decorates the function that absorbs an evicted block, to time it for example.
        progress: called with the number of rows that were finished.

    Returns:
        One `Rollout` per prompt, in order.

    Raises:
        ValueError: for an empty prompt, a length beyond the model's positions, or values out of range.
    """
    policy = open_policy(model)
    if kv_log is not None:
        check_place(kv_log)
    settings = _settings(policy, prompt_ids, max_new_tokens, temperature, seed, ignore_eos, window)
    stops = _stop_ids(policy, settings) if stop_ids is None or ignore_eos else list(stop_ids)
    rows = batch_size or max(len(prompt_ids), 1)
    results: list[Rollout] = []
    for start in range(0, max(len(prompt_ids), 1), rows):
        chunk = prompt_ids[start : start + rows]
        results.extend(_decode(policy, chunk, start, settings, stops, kv_log, wrap_absorb))
        if progress is not None:
            progress(len(chunk))
    return results


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


def _decode(
    policy: PolicyHandle,
    prompt_ids: Sequence[Sequence[int]],
    first_row: int,
    settings: SamplingSettings,
    stop_ids: list[int],
    kv_log: Place | None,
    wrap_absorb: Callable[[AbsorbFn], AbsorbFn] | None,
) -> list[Rollout]:
    """Decode one batch. Tokens stay on the device; the host looks at them every few steps only."""
    prompts = pad_prompts(prompt_ids, policy.device)
    count, width = settings.max_new_tokens, prompts.ids.shape[1]
    rows = range(first_row, first_row + len(prompt_ids))
    uniform = uniform_numbers(settings.seed, rows, count, policy.device)
    stops = torch.tensor(stop_ids, device=policy.device, dtype=torch.long)
    cache = policy.tuner.new_cache(
        window=settings.window,
        num_evicted=settings.num_evicted,
        eviction=settings.eviction,
        max_new_tokens=count,
        seed=settings.seed,
    )
    if wrap_absorb is not None and cache.absorb is not None:
        cache.absorb = wrap_absorb(cache.absorb)
    if kv_log is not None:
        cache.recorder = KVRecorder(width + count, on_host=kv_log == "host")
    tokens = prompts.ids.new_zeros(len(prompt_ids), count)
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    finished = torch.zeros(len(prompt_ids), dtype=torch.bool, device=policy.device)
    hidden = _forward(policy, cache, prompts.ids, prompts.positions(0, width), prompts.physical_mask(0))
    for step in range(count):
        distribution = scaled_log_softmax(hidden, policy.head, settings.scoring_temperature)
        chosen = sample_tokens(distribution, uniform[:, step], greedy=settings.temperature == 0)
        tokens[:, step] = chosen
        logprobs.append(distribution.gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
        if cache.recorder is not None:
            entropies.append(entropy_of(distribution))
        finished = finished | torch.isin(chosen, stops)
        last = step + 1 == count
        if last or (step % _STEPS_BETWEEN_STOP_CHECKS == 0 and bool(finished.all())):
            break
        cache.active_rows = ~finished
        resident = resident_thoughts(step, settings.window, settings.num_evicted)
        positions = prompts.positions(width + step, width + step + 1)
        hidden = _forward(policy, cache, chosen.unsqueeze(1), positions, prompts.physical_mask(resident))
    if cache.recorder is not None:
        cache.recorder.copy_new(cache.layers)
    joined = [torch.stack(values, dim=1) if values else None for values in (logprobs, entropies)]
    return _records(prompt_ids, tokens, joined, cache, stops, settings)


def _forward(policy: PolicyHandle, cache: BoundedCache, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
    """Hidden state [B, d] of the last column."""
    output = policy.backbone(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    last: Tensor = output.last_hidden_state[:, -1]
    return last


def _stop_ids(policy: PolicyHandle, settings: SamplingSettings) -> list[int]:
    """End-of-sequence tokens that the model declares; none if they are to be ignored."""
    if settings.ignore_eos:
        return []
    declared = policy.tuner.model.generation_config.eos_token_id
    if declared is None:
        return []
    return [declared] if isinstance(declared, int) else list(declared)


def _records(
    prompt_ids: Sequence[Sequence[int]],
    tokens: Tensor,
    scores: list[Tensor | None],
    cache: BoundedCache,
    stops: Tensor,
    settings: SamplingSettings,
) -> list[Rollout]:
    """Cut every row at its end and give it its own evictions and states."""
    logprobs, entropies = scores
    assert logprobs is not None
    decoded = tokens[:, : logprobs.shape[1]]
    is_stop = torch.isin(decoded, stops).cpu()
    states = torch.stack(cache.absorbed_states, dim=1) if cache.absorbed_states else None
    results = []
    for row, prompt in enumerate(prompt_ids):
        stopped = bool(is_stop[row].any())
        length = int(is_stop[row].int().argmax()) + 1 if stopped else decoded.shape[1]
        keys_values = None
        if cache.recorder is not None:
            first = cache.prompt_length - len(prompt)
            keys_values = cache.recorder.log[row, ..., first : cache.prompt_length + length - 1, :]
        points = eviction_points(length - 1, settings.window, settings.num_evicted)
        results.append(
            Rollout(
                prompt_ids=list(prompt),
                token_ids=decoded[row, :length].tolist(),
                logprobs=logprobs[row, :length].clone(),
                evictions=tuple(_eviction(cache, row, index, point) for index, point in enumerate(points)),
                states=None if states is None else states[row, : len(points)].clone(),
                keys_values=keys_values,
                entropies=None if entropies is None else entropies[row, :length].clone(),
                finish_reason="stop" if stopped else "length",
                settings=settings,
            )
        )
    return results


def _eviction(cache: BoundedCache, row: int, index: int, point: int) -> Eviction:
    slots = cache.evicted_slots[index]
    assert cache.num_evicted is not None
    return Eviction(
        before_token=point, num_tokens=cache.num_evicted, slots=None if slots is None else slots[row].clone()
    )
