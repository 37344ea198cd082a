"""The interface of segmented thinking: where the boundaries are, and what is carried over them.

A *chain* is one thought in several *links*. A link is an ordinary rollout: its prompt is the question and the carried
tokens, its thoughts are what was sampled since the boundary. So carried tokens are encoded again, at their new places,
and are scored only in the link in which they were sampled. Window, eviction and thought state know nothing of a
boundary: each link begins with the initial state, and its window holds the thoughts of that link alone.

A way of thinking that `keeps_written` carries keys and values instead: a link goes on from the cache of the one before,
nothing is encoded again, and what is not carried is absorbed into the thought state, which goes on as well.

All functions here are pure: they take and return tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

Tokens = Sequence[int]
ChainEnd = Literal["stop", "length", "invalid"]
"""Why a chain is over: a stop token, the end of a budget, or a step that is none."""


class Thinking(ABC):
    """What a thought keeps when it reaches a boundary. Subclasses are frozen dataclasses.

    In all methods `links` are the tokens that the links so far have sampled, in order.
    """

    @property
    @abstractmethod
    def num_links(self) -> int:
        """Links that a chain has at most."""

    @property
    def stop_sequences(self) -> tuple[tuple[int, ...], ...]:
        """Token sequences that end a link."""
        return ()

    @property
    def keeps_written(self) -> bool:
        """Whether keys and values are carried as they were written, instead of tokens."""
        return False

    def first_kept(self, link: Tokens) -> int:
        """Number of the first thought of a link whose keys and values the next one keeps; behind the last: none."""
        return len(link)

    @property
    def leaves_last(self) -> tuple[int, ...]:
        """The token sequence from which on thoughts of a link leave after all others, see `SamplingSettings`."""
        return ()

    @abstractmethod
    def max_new_tokens(self, links: Sequence[Tokens]) -> int:
        """Bound on the tokens of the next link."""

    @abstractmethod
    def prompt(self, question: Tokens, links: Sequence[Tokens]) -> list[int]:
        """Prompt of the next link: the question and what is carried."""

    @abstractmethod
    def after(self, question: Tokens, links: Sequence[Tokens], *, stopped: bool) -> ChainEnd | Literal["next"]:
        """What follows the last of these links: another one, or the end of the chain.

        Args:
            question: tokens of the question.
            links: the links, at least one.
            stopped: whether the last one ended before its bound.
        """

    @property
    @abstractmethod
    def bounds_of_links(self) -> tuple[str, ...]:
        """Names of the settings that `longest` depends on; the first one bounds the thoughts of a link."""

    @abstractmethod
    def longest(self, question_tokens: int, max_new_tokens: int) -> list[tuple[int, int]]:
        """(prompt tokens, thought tokens) of the links that need most: the first one, and what comes after it.

        No link has a longer prompt, more thoughts, or takes more positions than the most of these pairs, whether all of
        its thoughts count or only as many as a window holds.

        Args:
            question_tokens: tokens of the longest question.
            max_new_tokens: bound on the tokens of a whole chain.
        """

    def farthest(self, question_tokens: int, max_new_tokens: int) -> list[tuple[int, int]]:
        """(tokens before, thoughts) of what takes most positions: a link of `longest`, or the whole chain.

        Keys that stay as they were written stay at their positions, so that all tokens of a chain count there.
        """
        if self.keeps_written:
            return [(question_tokens, max_new_tokens)]
        return self.longest(question_tokens, max_new_tokens)

    @abstractmethod
    def check(self, question_tokens: int, max_new_tokens: int) -> None:
        """Refuse lengths under which no chain could have a second link.

        Args:
            question_tokens: tokens of the longest question.
            max_new_tokens: bound on the tokens of a whole chain.

        Raises:
            ValueError: if there are such lengths; the message names the remedy.
        """

    @abstractmethod
    def naive_context(self, question: Tokens, trace: Tokens, boundaries: Sequence[int], t: int) -> list[int]:
        """All tokens that thought `t` is predicted from under a full cache, by the definition, token by token.

        Args:
            question: tokens of the question.
            trace: everything that the chain sampled.
            boundaries: numbers of the thoughts before which a boundary lies.
            t: number of the thought.
        """

    @property
    def total_tokens(self) -> int:
        """Tokens that a whole chain samples at most."""
        used: list[Tokens] = []
        while len(used) < self.num_links:
            used.append(range(self.max_new_tokens(used)))
        return sum(map(len, used))
