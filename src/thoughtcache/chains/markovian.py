"""Markovian thinking (Delethink): at a boundary the context becomes the question, the first and the last thoughts.

Source: McGill-NLP/the-markovian-thinker. Published sizes, which are the defaults here: a context of C = 8192 thoughts;
4096 of them are carried, the first 100 of the whole answer and the last 3996; at most 5 chunks (links), so that an
answer has up to 8192 + 4 * 4096 = 24,576 tokens. The carried tokens are encoded again; an end-of-sequence token ends
the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from thoughtcache.chains.thinking import ChainEnd, Thinking, Tokens
from thoughtcache.checks import at_least_one


def carried(thoughts: Tokens, keep_first: int, keep_last: int) -> list[int]:
    """The first and the last thoughts, each of them once.

    Args:
        thoughts: everything that was sampled so far.
        keep_first: number of the first thoughts that stay.
        keep_last: number of the last ones.
    """
    if len(thoughts) <= keep_first + keep_last:
        return list(thoughts)
    return [*thoughts[:keep_first], *thoughts[len(thoughts) - keep_last :]]


@dataclass(frozen=True, kw_only=True)
class MarkovianThinking(Thinking):
    """Delethink: a full context is reset to the first and the last thoughts; the sizes are the published ones.

    Attributes:
        context: thoughts that a context holds behind the question, carried and new ones together (C).
        keep_first: thoughts from the beginning of the whole answer that are carried.
        keep_last: thoughts before the boundary that are carried; 0 carries the first ones only.
        max_links: links that a chain has at most.

    Raises:
        ValueError: if a number is out of range, or if nothing could be sampled behind what is carried.
    """

    context: int = 8192
    keep_first: int = 100
    keep_last: int = 3996
    max_links: int = 5

    def __post_init__(self) -> None:
        at_least_one(self, "context")
        for name in ("keep_first", "keep_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more thoughts, got {getattr(self, name)}")
        if self.max_links < 2:
            raise ValueError(
                f"max_links must be at least 2, got {self.max_links}; without a boundary this is an ordinary rollout"
            )
        if self.num_carried >= self.context:
            raise ValueError(
                f"keep_first={self.keep_first} and keep_last={self.keep_last} fill the context of {self.context} "
                "thoughts, so that a later link could sample nothing; raise context or carry less"
            )

    @property
    def num_carried(self) -> int:
        """Thoughts that are carried over a boundary."""
        return self.keep_first + self.keep_last

    @property
    def num_links(self) -> int:
        """Links that a chain has at most."""
        return self.max_links

    def max_new_tokens(self, links: Sequence[Tokens]) -> int:
        """The whole context in the first link, then what the carried thoughts leave of it."""
        return self.context - self.num_carried if links else self.context

    def prompt(self, question: Tokens, links: Sequence[Tokens]) -> list[int]:
        """The question, the first and the last thoughts."""
        return [*question, *carried([token for link in links for token in link], self.keep_first, self.keep_last)]

    def after(self, question: Tokens, links: Sequence[Tokens], *, stopped: bool) -> ChainEnd | Literal["next"]:
        """A full context is a boundary."""
        if stopped:
            return "stop"
        return "next" if len(links) < self.max_links else "length"

    @property
    def bounds_of_links(self) -> tuple[str, ...]:
        """The context holds everything behind the question."""
        return ("context",)

    def longest(self, question_tokens: int, max_new_tokens: int) -> list[tuple[int, int]]:
        """The first link, and any later one."""
        pairs = [(question_tokens, min(self.context, max_new_tokens))]
        left = max_new_tokens - self.context
        if left > 0:
            pairs.append((question_tokens + self.num_carried, min(self.context - self.num_carried, left)))
        return pairs

    def check(self, question_tokens: int, max_new_tokens: int) -> None:
        """Refuse a budget that ends inside the first context."""
        if max_new_tokens <= self.context:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} ends inside the first context of {self.context} thoughts, so that no "
                f"chain has a boundary; raise it to as much as {self.total_tokens}, or lower context"
            )

    def naive_context(self, question: Tokens, trace: Tokens, boundaries: Sequence[int], t: int) -> list[int]:
        """The question; of the thoughts before the boundary the first and the last; all thoughts since."""
        boundary = max((b for b in boundaries if b <= t), default=0)
        context = list(question)
        for i in range(t):
            is_new, is_first, is_last = i >= boundary, i < self.keep_first, boundary - self.keep_last <= i < boundary
            if is_new or is_first or is_last:
                context.append(trace[i])
        return context
