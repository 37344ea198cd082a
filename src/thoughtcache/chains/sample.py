"""Sampling of chains: a link that ends at a boundary queues the next one in the same engine.

Chains do not wait for each other: while one is in its third link another may be in its first (continuous batching). A
link that keeps keys and values as they were written goes on in the slot of the one before, in the same round.
The tokens of a chain depend on its question, its seed and its settings alone, as those of a rollout do, and a chain of
one link is that rollout.

Not covered: rollouts across processes and Ray, stop strings, a bound on the bytes of records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn
from transformers import PreTrainedTokenizerBase

from thoughtcache.chains.chain import Chain
from thoughtcache.chains.lengths import check_links
from thoughtcache.chains.thinking import ChainEnd, Thinking
from thoughtcache.config import OWN_WINDOW
from thoughtcache.measuring.phase_timer import PhaseTimer
from thoughtcache.policy.continuations import kept_prompt
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.modes import Place
from thoughtcache.policy.token_ids import check_prompts
from thoughtcache.records import Rollout, TokenFilters
from thoughtcache.sampler.draw.inverse_cdf import row_seeds
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.events import Event, Finished
from thoughtcache.sampler.request import NO_FILTERS, GoingOn, Request

SEED_BYTES = 5
"""A seed of a later link is below 2**40; a generator takes less than `row_seeds` allows."""


def rollout_chains(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    thinking: Thinking,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    filters: TokenFilters = NO_FILTERS,
    seed: int | Sequence[int] = 0,
    ignore_eos: bool = False,
    window: int | str | None = OWN_WINDOW,
    batch_size: int | None = None,
    stop_ids: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    record_kv: Place | None = None,
    anchors: bool = True,
    compile: bool = False,
    pack_weights: bool = True,
    on_event: Callable[[Event], None] | None = None,
    timer: PhaseTimer | None = None,
    on_chain: Callable[[int, Chain], None] | None = None,
) -> list[Chain]:
    """Sample one chain per question. What is not said here is as in `rollout`.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter.
        prompt_ids: token ids of the questions, of unequal lengths.
        thinking: where boundaries are and what is carried: `MarkovianThinking` or `StepFolding`.
        max_new_tokens: bound on the tokens of a whole chain; None for as many as its links can have.
        temperature: see `rollout`.
        filters: see `TokenFilters`; a repetition penalty counts the carried tokens, and `min_new_tokens` is refused.
        seed: as in `rollout`; every link after the first draws other numbers, which follow from the same seed.
        ignore_eos: go on past end-of-sequence tokens.
        window: resident thoughts of every link; "prompt" is the longest question.
        batch_size: links decoded at once, as many as questions by default.
        stop_ids: tokens that end a chain.
        tokenizer: its end-of-sequence token ends a chain.
        record_kv: see `rollout`; refused where links keep keys and values as they were written.
        anchors: see `rollout`.
        compile: see `rollout`; room for the longest possible prompt is made at once.
        pack_weights: see `rollout`.
        on_event: called with every event of the engine; a request there is a link.
        timer: see `rollout`.
        on_chain: called with the number of a question and its chain as soon as it is over.

    Returns:
        One `Chain` per question, in order. A question that is too long for a second link gets the first one only, which
        ends with "length" at its first boundary; `thinking.check` says so before.

    Raises:
        ValueError: if lengths are beyond the model's positions or leave no room for a second link behind any question,
            if `rollout` would refuse the arguments, or if links cannot keep keys and values under the cache
            (`sampler/going_on.py`).
    """
    policy = open_policy(model)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 sequence or None, got {batch_size}")
    check_prompts(prompt_ids, policy)
    seeds = row_seeds(seed, len(prompt_ids))
    check_chain_filters(filters)
    total = thinking.total_tokens if max_new_tokens is None else max_new_tokens
    question = max(map(len, prompt_ids))
    thinking.check(1, total)  # a longer question may leave no room for a second link: its chain is one link then
    cache = policy.tuner.thought_config.resolve_window(question, window)
    lengths = check_links(thinking, question, total, policy.reach, rolling_window=cache.rolling_window)
    held, most = cache.largest_budget or total, max(thoughts for _, thoughts in lengths)
    columns = max(prompt + min(thoughts, held) for prompt, thoughts in lengths)
    engine = Engine(
        model,
        num_slots=min(batch_size or len(prompt_ids), len(prompt_ids)),
        window=cache.window,
        tokenizer=tokenizer,
        # The longest prompt and the most thoughts may be of different links: no room is made for both together.
        max_prompt_tokens=columns - min(most, held) if compile else question,
        max_new_tokens=most,
        record_kv=record_kv,
        anchors=anchors,
        compile=compile,
        pack_weights=pack_weights,
        on_event=on_event,
        timer=timer,
    )

    def request(number: int) -> Request:
        chain = chains[number]
        own, row = link_seed(*chain.seed, len(chain.links))
        return Request(
            prompt_ids=chain.prompt(thinking),
            max_new_tokens=min(thinking.max_new_tokens(chain.tokens), total - chain.num_tokens),
            temperature=temperature,
            filters=filters,
            seed=own,
            row=row,
            ignore_eos=ignore_eos,
            stop_ids=stop_ids,
            stop_sequences=thinking.stop_sequences,
            leaves_last=thinking.leaves_last,
            go_on=partial(go_on, number) if thinking.keeps_written else None,
        )

    def go_on(number: int, link: Rollout) -> GoingOn | None:
        chain = chains[number]
        chain.end = chain.grow(link, thinking, total)
        if chain.end is not None:
            return None
        running[engine.num_requests] = number
        return GoingOn(first_kept=thinking.first_kept(link.token_ids), request=request(number))

    chains = [_Growing(question=list(ids), seed=pair) for ids, pair in zip(prompt_ids, seeds, strict=True)]
    running = {engine.add(request(number)): number for number in range(len(chains))}
    with engine:
        while running:
            for event in engine.step():
                if not isinstance(event, Finished):
                    continue
                number = running.pop(event.request)
                chain = chains[number]
                if not thinking.keeps_written:
                    chain.end = chain.grow(event.rollout, thinking, total)
                    if chain.end is None:
                        running[engine.add(request(number))] = number
                if chain.end is not None and on_chain is not None:
                    on_chain(number, chain.finished(thinking))
            engine.expect(len(running))
    return [chain.finished(thinking) for chain in chains]


def check_chain_filters(filters: TokenFilters) -> None:
    """Refuse a filter that has no meaning for chains.

    Raises:
        ValueError: for `min_new_tokens`.
    """
    if filters.min_new_tokens:
        raise ValueError(
            f"min_new_tokens={filters.min_new_tokens} has no meaning for a chain, whose links end at boundaries; "
            "leave it out"
        )


def link_seed(seed: int, row: int, number: int) -> tuple[int, int]:
    """(seed, row) of the uniform numbers of a link: those of a rollout for the first, others for every later one.

    Args:
        seed: seed of the chain.
        row: its row.
        number: number of the link, from 0.
    """
    if number == 0:
        return seed, row
    digest = hashlib.blake2b(repr((seed, row, number)).encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "big"), 0


@dataclass(kw_only=True, slots=True)
class _Growing:
    """A chain that is not over yet.

    Attributes:
        question: its question.
        seed: (seed, row) of the chain.
        links: its links so far.
        end: why it is over; None while it goes on.
    """

    question: list[int]
    seed: tuple[int, int]
    links: list[Rollout] = field(default_factory=list)
    end: ChainEnd | None = None

    @property
    def tokens(self) -> list[list[int]]:
        """What each link has sampled."""
        return [link.token_ids for link in self.links]

    @property
    def num_tokens(self) -> int:
        """Tokens of all links together."""
        return sum(map(len, self.tokens))

    def prompt(self, thinking: Thinking) -> list[int]:
        """Prompt of the next link: the question and what is carried, as tokens or as keys and values."""
        if thinking.keeps_written and self.links:
            return kept_prompt(self.links[-1], thinking.first_kept(self.links[-1].token_ids))
        return thinking.prompt(self.question, self.tokens)

    def grow(self, link: Rollout, thinking: Thinking, total: int) -> ChainEnd | None:
        """Take a link; why the chain is over with it, or None."""
        self.links.append(link)
        after = thinking.after(self.question, self.tokens, stopped=link.finish_reason == "stop")
        if after == "next":
            return "length" if self.num_tokens >= total else None
        return after

    def finished(self, thinking: Thinking) -> Chain:
        """The record."""
        assert self.end is not None
        return Chain(links=tuple(self.links), end=self.end, thinking=thinking)
