"""A request to an engine: one sequence with its own settings, seed, stop rules and limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thoughtcache.records import Rollout, TokenFilters

NO_FILTERS = TokenFilters()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One sequence. Its tokens depend on this, the weights and the engine's cache alone, never on its neighbours.

    Attributes:
        prompt_ids: token ids of the prompt.
        max_new_tokens: bound on the thought tokens.
        temperature: temperature of the sampled and scored distribution; 0 decodes greedily.
        filters: what makes the distribution that is drawn from another than the scored one.
        seed: seed of the uniform numbers, and of eviction policies that draw.
        row: the uniform numbers are those of `(seed, row)`, so that requests can share a seed.
        ignore_eos: go on past end-of-sequence tokens.
        stop_ids: tokens that end the sequence, instead of the end-of-sequence tokens of the model and its tokenizer;
            with `ignore_eos` there are none.
        stop_strings: texts that end it; the engine needs a tokenizer for them.
        stop_sequences: token sequences that end it, with or without `ignore_eos`; it ends with the first one.
        given_tokens: thoughts that are taken instead of drawn. As many as `max_new_tokens` score a text under the
            policy: the record has its log-probabilities, states and evictions, and nothing but their end ends the
            sequence. Fewer are a beginning, in which nothing ends it; it goes on as if it had drawn them itself.
        leaves_last: see `SamplingSettings`; for eviction policies that choose.
        go_on: asked with the record when the sequence is over: how another one goes on in its slot, or None.

    Raises:
        ValueError: if a value is out of range, or if a combination has no meaning.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 1.0
    filters: TokenFilters = NO_FILTERS
    seed: int = 0
    row: int = 0
    ignore_eos: bool = False
    stop_ids: Sequence[int] | None = None
    stop_strings: str | Sequence[str] = ()
    stop_sequences: Sequence[Sequence[int]] = ()
    given_tokens: Sequence[int] | None = None
    leaves_last: Sequence[int] = ()
    go_on: Callable[[Rollout], GoingOn | None] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        check_filters(self.filters, self.temperature, self.max_new_tokens)
        given = self.given_tokens
        if given is not None and not 1 <= len(given) <= self.max_new_tokens:
            raise ValueError(
                f"given_tokens must be 1 to max_new_tokens={self.max_new_tokens} tokens, got {len(given)}; leave them "
                "out, or raise max_new_tokens"
            )
        ends_early = self.stop_strings or self.stop_ids or self.stop_sequences
        if self.is_given_whole and (self.filters.active or ends_early):
            raise ValueError(
                "as many given_tokens as max_new_tokens are neither drawn nor ended early; leave out filters and stop "
                "rules"
            )

    @property
    def is_given_whole(self) -> bool:
        """Whether no token is drawn."""
        return self.given_tokens is not None and len(self.given_tokens) == self.max_new_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class GoingOn:
    """A sequence that goes on from the cache of the one before, whose slot it takes at once.

    Attributes:
        first_kept: number of the first thought of the one before that stays, see `Continuation`.
        request: how it goes on; its prompt is `kept_prompt(the one before, first_kept)`.
    """

    first_kept: int
    request: Request


def check_temperature(temperature: float) -> None:
    """Refuse temperatures that make no distribution.

    Raises:
        ValueError: for one that is negative, infinite or not a number.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or positive, and finite, got {temperature}")


def check_filters(filters: TokenFilters, temperature: float, max_new_tokens: int) -> None:
    """Refuse filters that change nothing or can never be met.

    Raises:
        ValueError: if a filter is refused; the message names the values and the remedy.
    """
    check_temperature(temperature)
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
