"""`thoughtcache generate`: one completion of a saved adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thoughtcache.cache.eviction import OptionValue
from thoughtcache.chains.sample import rollout_chains
from thoughtcache.chains.table import check_thinking, make_thinking
from thoughtcache.recipes.load_adapter import load_adapted
from thoughtcache.records import TokenFilters
from thoughtcache.sampler.rollout import rollout
from thoughtcache.tasks.chat import encode_prompt
from thoughtcache.tasks.saved_prompt import saved_instruction


def answer(
    *,
    prompt: str,
    model: str,
    adapter: str,
    max_new_tokens: int,
    temperature: float,
    dtype: str,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    min_new_tokens: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    eviction: str | None = None,
    eviction_options: Mapping[str, OptionValue] | None = None,
    eviction_budgets: str | list[int] | list[list[int]] | None = None,
    thinking: str | None = None,
    thinking_options: Mapping[str, str] | None = None,
) -> str:
    """One completion of a saved adapter under its own window, of the prompt as it was trained on.

    Tokenizer, chat template and instruction are those that training saved with the adapter; without a saved tokenizer
    the base model's is taken. It ends where completions ended in training (`thoughtcache/ends.py`).

    Args:
        prompt: the question.
        model: folder or hub id of the base model.
        adapter: folder of the adapter.
        max_new_tokens: length of the thoughts.
        temperature: 0 decodes greedily.
        dtype: dtype of the base model.
        top_k: see `thoughtcache.rollout`, as the next five.
        top_p: see there.
        min_p: see there.
        repetition_penalty: see there.
        min_new_tokens: see there.
        seed: see there.
        stop: texts that end the completion, which ends with them.
        eviction: another eviction policy than the adapter's.
        eviction_options: settings of that policy.
        eviction_budgets: other budgets than the adapter's, as in `ThoughtConfig`, or "even".
        thinking: think in links, "markovian" or "folding"; None for one context. `max_new_tokens` bounds all links.
        thinking_options: its settings as texts (`chains/table.py`).

    Raises:
        ValueError: if `thoughtcache.rollout` or `thoughtcache.rollout_chains` refuses its arguments, if links have no
            room for a second one, or if the folder holds no adapter, a damaged one, or one for another base model.
    """
    check_thinking(thinking, thinking_options, stop)
    cache = {"eviction_budgets": eviction_budgets}
    adapted, tokenizer = load_adapted(
        model, adapter, dtype, eviction=eviction, eviction_options=eviction_options, cache=cache
    )
    message = {"role": "user", "content": prompt}
    prompt_ids = encode_prompt(tokenizer, [message], instruction=saved_instruction(adapter))
    if thinking is not None:
        filters = TokenFilters(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            min_new_tokens=min_new_tokens,
        )
        way = make_thinking(thinking, thinking_options, tokenizer)
        way.check(len(prompt_ids), max_new_tokens)
        (chain,) = rollout_chains(
            adapted,
            [prompt_ids],
            way,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            filters=filters,
            seed=seed,
            tokenizer=tokenizer,
            anchors=False,
        )
        return str(tokenizer.decode(chain.token_ids, skip_special_tokens=True))
    (result,) = rollout(
        adapted,
        [prompt_ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        min_new_tokens=min_new_tokens,
        seed=seed,
        stop_strings=stop,
        tokenizer=tokenizer,
        anchors=False,
    )
    return str(tokenizer.decode(result.token_ids, skip_special_tokens=True))
