"""Execution 1: sampling token by token under the bounded cache.

The flow of one step (`engine.py`): where a window is full the cache evicts and absorbs (`cache/`, `state/`), the
adapter reads the state (`adapter/`), the head gives the distribution (`policy/token_logprobs.py`), a token is drawn
(`drawing.py`), and what the learner needs to repeat the step is recorded (`records.py`). Who repeats it: `learner/`.

Filters (top-k and the like) are for sampling only: the learner scores the distribution without them, and training
refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from thoughtcache.adapter.positions import check_positions
from thoughtcache.config import OWN_WINDOW
from thoughtcache.measuring.phase_timer import PhaseTimer
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.modes import Place
from thoughtcache.policy.token_ids import check_prompts
from thoughtcache.records import Rollout, TokenFilters
from thoughtcache.sampler.draw.inverse_cdf import row_seeds
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.events import Event, Finished
from thoughtcache.sampler.record_bytes import check_record_bytes, item_bytes, record_bytes
from thoughtcache.sampler.request import Request


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
    window: int | str | None = OWN_WINDOW,
    batch_size: int | None = None,
    stop_ids: Sequence[int] | None = None,
    stop_strings: str | Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    record_kv: Place | None = None,
    anchors: bool = True,
    max_record_bytes: int | None = None,
    compile: bool = False,
    pack_weights: bool = True,
    rows: Sequence[int] | None = None,
    on_event: Callable[[Event], None] | None = None,
    stream: bool = False,
    timer: PhaseTimer | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """Sample one thought sequence per prompt.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter; inside `disable_adapter()` the base model is sampled.
        prompt_ids: token ids, one list per prompt, of unequal lengths.
        max_new_tokens: bound on the thought tokens of each row.
        temperature: temperature of the sampled and scored distribution; 0 decodes greedily.
        top_k: draw from the most likely tokens only; see `TokenFilters`, as the next three. With any of them on,
            `Rollout.sampled_logprobs` is recorded beside `Rollout.logprobs`.
        top_p: draw from the most likely tokens that hold this probability together.
        min_p: draw from tokens that are at least so likely relative to the most likely one.
        repetition_penalty: discourages (above 1) tokens of the prompt and of the thoughts so far.
        seed: row `i` draws from `(seed, i)`, independent of its neighbours and of `batch_size`. One seed per prompt
            instead: each row is the one that a call of its own with its seed would give.
        ignore_eos: go on past end-of-sequence tokens.
        min_new_tokens: stop tokens are ignored for the first `min_new_tokens` thought tokens.
        window: resident thoughts instead of the adapter's own: an integer, "prompt" or None for the full cache.
        batch_size: slots: sequences decoded at once, all of them by default. A slot whose sequence ends takes the next
            prompt at once.
        stop_ids: tokens that end a row, instead of the end-of-sequence tokens of the model and of `tokenizer`.
        stop_strings: texts that end a row, whether tokens are ignored or not: it ends with the token that completes
            the first of them in the text of its thoughts, special tokens included.
        tokenizer: tokenizer of the model. It makes that text, and its end-of-sequence token ends a row as those that
            the model declares do; without it only the model's are known. Needed with `stop_strings`.
        record_kv: record the keys and values of all tokens on the "device" or the "host", and the entropies, so that
            `replay(reuse=True)` needs no forward pass of its own; None records neither.
        anchors: record the thought states after each eviction (`Rollout.states`), which keep a replay on the sampled
            path; they grow with the length. A rollout that no learner will repeat can do without.
        max_record_bytes: refuse the call if what its rollouts carry (states, evicted slots, keys and values, scores;
            on the device and on the host) could outgrow this, were every row to reach `max_new_tokens`.
        compile: static shapes, and decode and eviction steps compiled by `torch.compile`; the first rounds of a new
            shape take as long as compiling does, and every slot costs the same whether it is full or free.
        pack_weights: decode on a CPU from a copy of the weights in the layout that is fastest there (fp32 and bf16; the
            same up to rounding); False saves the memory of the copy. It has no effect elsewhere, or with `compile`.
        rows: sample only these prompts, by number; seeds, the resolved window and all checks are those of the whole
            call, so that a call can be split over several processes. All of them by default.
        on_event: called with every event of the engine (`events.py`) when it happens.
        stream: tell it new tokens as well, at every look at the device.
        timer: adds up the seconds of the phases of sampling.
        progress: called with the number of rows that were finished.

    Returns:
        One `Rollout` per prompt, in order; with `rows`, one per row, in the order of `rows`.

    Raises:
        ValueError: if a prompt is empty, the prompts are no lists of the model's token ids, a length is beyond the
            model's positions, a value is out of range, or records could outgrow `max_record_bytes`.
        RuntimeError: if this model is sampling already.
    """
    policy = open_policy(model)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 sequence or None, got {batch_size}")
    check_prompts(prompt_ids, policy)
    seeds = row_seeds(seed, len(prompt_ids))
    longest = max(map(len, prompt_ids))
    cache = policy.tuner.thought_config.resolve_window(longest, window)
    filters = TokenFilters(
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        min_new_tokens=min_new_tokens,
    )
    requests = [
        Request(
            prompt_ids=ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            filters=filters,
            seed=own,
            row=row,
            ignore_eos=ignore_eos,
            stop_ids=stop_ids,
            stop_strings=stop_strings,
        )
        for ids, (own, row) in zip(prompt_ids, seeds, strict=True)
    ]
    check_positions(longest, max_new_tokens, policy.reach, rolling_window=cache.rolling_window)
    if max_record_bytes is not None:
        lengths = [len(ids) for ids in prompt_ids]
        items = item_bytes(policy, cache, filters, keys_values=record_kv is not None, anchors=anchors)
        sizes = cache.first_budgets or [cache.window] * policy.tuner.num_layers
        needed = record_bytes(items, lengths, [max_new_tokens] * len(lengths), sizes, cache.num_evicted)
        check_record_bytes(needed, max_record_bytes, len(lengths))
    chosen = range(len(prompt_ids)) if rows is None else rows
    if not chosen or min(chosen) < 0 or max(chosen) >= len(prompt_ids):
        raise ValueError(f"rows must be numbers from 0 to {len(prompt_ids) - 1}, at least one, got {list(chosen)}")

    def tell(event: Event) -> None:
        if on_event is not None:
            on_event(event)
        if progress is not None and isinstance(event, Finished):
            progress(1)

    engine = Engine(
        model,
        num_slots=min(batch_size or len(chosen), len(chosen)),
        window=cache.window,
        tokenizer=tokenizer,
        max_prompt_tokens=max(len(prompt_ids[row]) for row in chosen),
        max_new_tokens=max_new_tokens,
        record_kv=record_kv,
        anchors=anchors,
        compile=compile,
        pack_weights=pack_weights,
        stream=stream,
        on_event=tell,
        timer=timer,
    )
    return engine.run(requests[row] for row in chosen)
