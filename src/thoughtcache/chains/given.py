"""Traces that are given instead of sampled: where their boundaries lie, and their chains under a model's policy.

The links of a worked solution are also the examples from which a model learns to think in steps before it is rewarded
for it (the cold start of Accordion-Thinking): each is a prompt and what has to follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from thoughtcache.chains.chain import Chain
from thoughtcache.chains.thinking import ChainEnd, Thinking, Tokens
from thoughtcache.config import OWN_WINDOW
from thoughtcache.policy.continuations import kept_prompt
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.token_ids import check_prompts
from thoughtcache.records import CacheSettings, Rollout
from thoughtcache.sampler.draw.stop_sequences import find_end
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.given import BATCH_SIZE, given_text, rollouts_of_given
from thoughtcache.sampler.request import GoingOn, Request


def split_trace(
    thinking: Thinking, question: Tokens, trace: Tokens
) -> tuple[list[tuple[list[int], list[int]]], ChainEnd]:
    """A trace as the links in which it would have been sampled.

    Args:
        thinking: where boundaries are and what is carried.
        question: tokens of the question.
        trace: everything behind it, at least one token; its end counts as a stop token.

    Returns:
        (prompt, tokens) of every link, and why the chain is over. A trace that goes on behind the end of its chain is
        cut there.

    Raises:
        ValueError: if the trace is empty.
    """
    if not trace:
        raise ValueError("the trace is empty, and a link has a token at least; leave out this question")
    links: list[list[int]] = []
    pairs: list[tuple[list[int], list[int]]] = []
    rest, after = list(trace), "next"
    while after == "next":
        bound = thinking.max_new_tokens(links)
        end = find_end(rest[:bound], thinking.stop_sequences) or min(bound, len(rest))
        prompt = thinking.prompt(question, links)
        link, rest = rest[:end], rest[end:]
        links.append(link)
        pairs.append((prompt, link))
        stopped = not rest or end < bound
        after = thinking.after(question, links, stopped=stopped)
        if after == "next" and not rest:
            after = "length"
    return pairs, after  # type: ignore[return-value]


def given_chains(
    model: nn.Module,
    thinking: Thinking,
    questions: Sequence[Tokens],
    traces: Sequence[Tokens],
    *,
    window: int | str | None = OWN_WINDOW,
    seed: int = 0,
) -> list[Chain]:
    """Given traces as chains under the model's own policy: with its evictions, states and log-probabilities.

    Args:
        model: the adapted model.
        thinking: where boundaries are and what is carried.
        questions: tokens of the questions.
        traces: everything behind each; what goes on behind the end of a chain is left out.
        window: resident thoughts of every link instead of the adapter's own.
        seed: seed of eviction policies that draw.

    Returns:
        One `Chain` per question, in order.

    Raises:
        ValueError: if there is not one trace per question, if one is empty, or if tokens are none of the model's.
    """
    policy = open_policy(model)
    check_prompts(questions, policy)
    check_prompts(traces, policy, kind="trace")
    if len(questions) != len(traces):
        raise ValueError(f"{len(questions)} questions and {len(traces)} traces were given; pass one trace each")
    cache = policy.tuner.thought_config.resolve_window(max(map(len, questions)), window)
    split = [split_trace(thinking, question, trace) for question, trace in zip(questions, traces, strict=True)]
    if thinking.keeps_written:
        links = _given_in_slots(model, thinking, [pairs for pairs, _ in split], cache, seed)
        return [Chain(links=own, end=end, thinking=thinking) for own, (_, end) in zip(links, split, strict=True)]
    texts = [given_text(prompt, link, cache, seed=seed) for pairs, _ in split for prompt, link in pairs]
    scored = iter(rollouts_of_given(model, texts))
    return [Chain(links=tuple(next(scored) for _ in pairs), end=end, thinking=thinking) for pairs, end in split]


def _given_in_slots(
    model: nn.Module,
    thinking: Thinking,
    split: Sequence[Sequence[tuple[list[int], list[int]]]],
    cache: CacheSettings,
    seed: int,
) -> list[tuple[Rollout, ...]]:
    """The links of every chain, each of which goes on from the cache of the one before."""
    found: list[list[Rollout]] = [[] for _ in split]

    def request(number: int) -> Request:
        links, prompt = found[number], split[number][0][0]
        if links:
            prompt = kept_prompt(links[-1], thinking.first_kept(links[-1].token_ids))
        tokens = split[number][len(links)][1]
        return Request(
            prompt_ids=prompt,
            max_new_tokens=len(tokens),
            seed=seed,
            given_tokens=tokens,
            leaves_last=thinking.leaves_last,
            go_on=partial(go_on, number),
        )

    def go_on(number: int, link: Rollout) -> GoingOn | None:
        found[number].append(link)
        if len(found[number]) == len(split[number]):
            return None
        return GoingOn(first_kept=thinking.first_kept(link.token_ids), request=request(number))

    engine = Engine(model, num_slots=min(BATCH_SIZE, len(split)), window=cache.window)
    engine.run(request(number) for number in range(len(split)))
    return [tuple(links) for links in found]
