"""What the harness asks of a generation, as requests to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thoughtcache.records import TokenFilters
from thoughtcache.sampler.request import Request

FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One generation.

    Attributes:
        max_new_tokens: bound on its tokens.
        temperature: 0 decodes greedily.
        filters: what makes the distribution that is drawn from another than the model's.
        stop_strings: texts that end it, and are cut off.
    """

    max_new_tokens: int
    temperature: float
    filters: TokenFilters
    stop_strings: tuple[str, ...]


def asked(options: Mapping[str, Any]) -> Asked:
    """The settings of a generation.

    Args:
        options: what the harness's `normalize_gen_kwargs` gives.

    Raises:
        ValueError: if a task asks for an option that the engine does not have.
    """
    rest = dict(options)
    until = [text for text in rest.pop("until") or [] if text]
    samples = bool(rest.pop("do_sample", False))
    temperature = float(rest.pop("temperature", 0.0)) if samples else 0.0
    if samples and temperature == 0.0:
        temperature = 1.0  # what transformers takes for a sampling without one
    rest.pop("temperature", None)
    filters = {name: rest.pop(name) for name in FILTERS if name in rest}
    length = int(rest.pop("max_gen_toks"))
    if rest:
        raise ValueError(
            f"generation option {next(iter(rest))!r} is not known to the engine, which has until, max_gen_toks, "
            f"do_sample, temperature, {', '.join(FILTERS)}; leave it out of the task or --gen_kwargs"
        )
    if temperature == 0.0:  # the most likely token passes every filter but a penalty
        filters = {name: value for name, value in filters.items() if name == "repetition_penalty"}
    return Asked(
        max_new_tokens=length,
        temperature=temperature,
        filters=TokenFilters(**filters),
        stop_strings=tuple(until),
    )


def request_of(own: Asked, context: Sequence[int], num_prompt: int, seed: int) -> Request:
    """The request for one context.

    Args:
        own: what is asked for.
        context: tokens of the context.
        num_prompt: the first so many of them are the prompt, which stays in the cache; the rest are thoughts.
        seed: seed of its random numbers.
    """
    begun = list(context[num_prompt:])
    return Request(
        prompt_ids=list(context[:num_prompt]),
        max_new_tokens=len(begun) + own.max_new_tokens,
        temperature=own.temperature,
        filters=own.filters,
        seed=seed,
        stop_strings=own.stop_strings,
        given_tokens=begun or None,
    )
