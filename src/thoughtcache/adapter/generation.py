"""Decides what `generate` of transformers may be asked for under a thought state.

`generate` takes options from three places: its keywords, the `GenerationConfig` it is given, and the model's own. They
are merged first, as transformers merges them, and every option is then either right or refused. Right is whatever
works on the logits of one token at a time, or on what comes out. Refused is what would process several thoughts at
once, go back, or bring another cache.

`OPTIONS` and `ARGUMENTS` name all options of the supported versions; a test fails when transformers adds one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from thoughtcache.adapter.cache_argument import CACHE_ARGUMENTS

DEFAULT_NEW_TOKENS = 20
"""The number of tokens that transformers adds to a prompt when nobody says how many."""


class Use(Enum):
    """The ways in which an option is used."""

    SCORES = "changes the scores of a token, after the adapter's logits"
    WORKS = "decides how long, which tokens are special, or what is returned"
    UNREAD = "is read in modes only that are refused, or never by generate"
    REFUSED = "would run another policy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An option that is refused.

    Attributes:
        off: values with which it does nothing.
        reason: why it cannot be combined with a state.
        remedy: what to do instead.
    """

    off: tuple[Any, ...] = (None,)
    reason: str
    remedy: str


_ASSISTED = Refusal(
    off=(None, False),
    reason="drafted tokens are checked several at once and taken back, and what was absorbed cannot be",
    remedy="leave it out",
)
_BEAMS = Refusal(
    off=(None, 1), reason="every beam would need a state of its own", remedy="use num_beams=1, with do_sample=True"
)
_SEARCH = Refusal(
    off=(None, 0), reason="candidates are run and thrown away, and what was absorbed cannot be", remedy="leave it out"
)
_OWN_CACHE = Refusal(
    reason="the adapter brings the cache that evicts and absorbs",
    remedy="leave it out; for another cache use window=None or `with thoughtcache.full_cache(model):`",
)
_PROMPT = Refusal(reason="the prompt is given as tokens", remedy="use input_ids")

REFUSED_OPTIONS: Mapping[str, Refusal] = {
    "num_beams": _BEAMS,
    "num_beam_groups": _BEAMS,
    "constraints": _BEAMS,
    "force_words_ids": _BEAMS,
    "penalty_alpha": _SEARCH,
    "dola_layers": _SEARCH,
    "prompt_lookup_num_tokens": _ASSISTED,
    "assistant_early_exit": _ASSISTED,
    "use_mtp": _ASSISTED,
    "speculation_type": _ASSISTED,
    "is_assistant": _ASSISTED,
    "use_cache": Refusal(
        off=(None, True), reason="the state is made of cached keys and values", remedy="use use_cache=True"
    ),
    # transformers itself unsets "hybrid", which old configurations carry.
    "cache_implementation": Refusal(off=(None, "hybrid"), reason=_OWN_CACHE.reason, remedy=_OWN_CACHE.remedy),
    "prefill_chunk_size": Refusal(
        reason="the first chunk would count as the prompt and the others as thoughts", remedy="leave it out"
    ),
    "guidance_scale": Refusal(
        off=(None, 1), reason="the unconditional pass has a full cache and no state", remedy="leave it out"
    ),
    "token_healing": Refusal(
        off=(None, False), reason="it changes the prompt", remedy="heal the prompt before it is given"
    ),
}

_SCORES = (
    "temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty "
    "encoder_repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids sequence_bias "
    "suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id min_length min_new_tokens "
    "exponential_decay_length_penalty renormalize_logits remove_invalid_values watermarking_config"
)
_WORKS = (
    "do_sample max_length max_new_tokens max_time stop_strings num_return_sequences bos_token_id eos_token_id "
    "pad_token_id output_attentions output_hidden_states output_logits output_scores return_dict_in_generate"
)
_UNREAD = (
    "_commit_hash _from_model_config transformers_version decoder_start_token_id early_stopping length_penalty "
    "diversity_penalty low_memory cache_config max_cache_len compile_config disable_compile continuous_batching_config "
    "assistant_confidence_threshold assistant_ensemble_weight assistant_lookbehind max_matching_ngram_size "
    "num_assistant_tokens num_assistant_tokens_schedule target_lookbehind"
)

OPTIONS: Mapping[str, Use] = {
    **dict.fromkeys(_SCORES.split(), Use.SCORES),
    **dict.fromkeys(_WORKS.split(), Use.WORKS),
    **dict.fromkeys(_UNREAD.split(), Use.UNREAD),
    **dict.fromkeys(REFUSED_OPTIONS, Use.REFUSED),
}
"""Every field of a `GenerationConfig`."""

REFUSED_ARGUMENTS: Mapping[str, Refusal] = {
    "assistant_model": _ASSISTED,
    "custom_generate": Refusal(reason="its loop may do anything to the cache", remedy="leave it out"),
    **dict.fromkeys(CACHE_ARGUMENTS, _OWN_CACHE),
    "inputs_embeds": _PROMPT,
    "negative_prompt_ids": REFUSED_OPTIONS["guidance_scale"],
    "negative_prompt_attention_mask": REFUSED_OPTIONS["guidance_scale"],
}

_WORKING_ARGUMENTS = (
    "inputs generation_config logits_processor stopping_criteria prefix_allowed_tokens_fn synced_gpus streamer"
)

ARGUMENTS: Mapping[str, Use] = {
    **dict.fromkeys(_WORKING_ARGUMENTS.split(), Use.WORKS),
    **dict.fromkeys(REFUSED_ARGUMENTS, Use.REFUSED),
}
"""Every argument of `generate` that is not an option, and those of the model that are refused."""


def keyword_arguments(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, whether they were given by position or by name."""
    names = [name for name, p in inspect.signature(generate).parameters.items() if p.kind is not p.VAR_KEYWORD]
    if len(args) > len(names):
        raise TypeError(f"generate takes at most {len(names)} arguments by position, got {len(args)}")
    twice = sorted(set(names[: len(args)]) & set(kwargs))
    if twice:
        raise TypeError(f"generate got {twice} by position and by name")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def merged_options(
    own: GenerationConfig, given: GenerationConfig | None, keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """The value of every option, None where nobody set it: a keyword, else what was given, else the model's own."""
    merged = {}
    for name in OPTIONS:
        value = None if given is None else getattr(given, name, None)
        merged[name] = keywords.get(name, getattr(own, name, None) if value is None else value)
    return merged


def check_options(options: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuse what would not be the adapter's policy.

    Args:
        options: the merged options.
        arguments: arguments of the call, by name.

    Raises:
        ValueError: if an option or an argument is refused; the message names the value, the reason and the remedy.
    """
    for refusals, values in ((REFUSED_ARGUMENTS, arguments), (REFUSED_OPTIONS, options)):
        for name, refusal in refusals.items():
            value = values.get(name)
            if not any(value is off or (isinstance(value, int | float | str) and value == off) for off in refusal.off):
                raise ValueError(
                    f"{name}={value!r} cannot be combined with a thought state: {refusal.reason}; {refusal.remedy} "
                    "(generate reads it from its keywords, its GenerationConfig and model.generation_config)"
                )


def prompt_tokens(arguments: Mapping[str, Any]) -> Tensor:
    """[B, P] token ids of a call's prompts.

    Raises:
        ValueError: if there are none, or an empty one.
    """
    ids: Any = arguments.get("inputs")
    ids = arguments.get("input_ids") if ids is None else ids
    if ids is None:
        raise ValueError("generate needs input_ids: one prompt per row")
    if ids.ndim != 2:
        raise ValueError(f"input_ids must have the shape [batch, length], got {list(ids.shape)}; add a dimension")
    if not ids.shape[0]:
        raise ValueError("no prompts were given; input_ids has no rows")
    mask = arguments.get("attention_mask")
    lengths = [0] * ids.shape[0] if not ids.shape[1] else None if mask is None else mask.sum(dim=1).tolist()
    if lengths is not None and not all(lengths):
        raise ValueError(f"prompt {lengths.index(0)} is empty; every prompt needs at least one token")
    assert isinstance(ids, Tensor)
    return ids


def new_token_bound(options: Mapping[str, Any], prompt_length: int, max_positions: int | None) -> int:
    """The number of tokens that a generation may add, by the rules of transformers.

    Args:
        options: the merged options.
        prompt_length: tokens of the prompt, padding included.
        max_positions: positions of the model, which bound the default.
    """
    if options["max_new_tokens"] is not None:
        return int(options["max_new_tokens"])
    if options["max_length"] is not None:
        return max(int(options["max_length"]) - prompt_length, 1)
    room = DEFAULT_NEW_TOKENS if max_positions is None else max_positions - prompt_length
    return max(min(DEFAULT_NEW_TOKENS, room), 1)
