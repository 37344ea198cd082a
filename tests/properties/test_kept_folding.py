"""Chains that keep keys and values, of random steps, markers and windows: choice, replay and the definition agree."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close
from support.models import tiny_model
from thoughtcache.chains.chain import links_of

MODELS = {
    "sliding": tiny_model(evict_fraction=0.5, state_rule="gated"),
    "h2o": tiny_model(eviction="h2o", evict_fraction=0.4),
    "random": tiny_model(eviction="random", evict_fraction=0.7),
    "memory in attention, snapkv": tiny_model(eviction="snapkv", memory="attention"),
    "both memories, tova": tiny_model(eviction="tova", memory="both", evict_fraction=0.3),
}
OPENINGS = ([7], [7, 8], [7, 7, 8])
CLOSINGS = ([11], [11, 12])
# Beginnings of markers stand in the text as well; whole ones do only where they may, or the step is none.
words = st.lists(st.sampled_from([1, 2, 3, 7, 8, 12]), max_size=8)
steps = st.lists(st.tuples(words, words), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    traces=st.lists(st.tuples(st.lists(st.integers(0, 28), min_size=1, max_size=5), steps), min_size=1, max_size=3),
    opening=st.sampled_from(OPENINGS),
    closing=st.sampled_from(CLOSINGS),
    window=st.one_of(st.none(), st.integers(1, 9)),
)
def test_every_trace_is_folded_as_the_definition_says(
    kind: str, traces: Any, opening: list[int], closing: list[int], window: int | None
) -> None:
    folding = tc.StepFolding(
        opening=opening, closing=closing, keep="written", max_steps=4, step_tokens=30, summary_tokens=20
    )
    texts = [[token for text in told for token in (*text[0], *opening, *text[1], *closing)] + [5] for _, told in traces]
    model, questions = MODELS[kind], [question for question, _ in traces]
    chains = tc.given_chains(model, folding, questions, texts, window=window)
    recorded = torch.nn.utils.rnn.pad_sequence([chain.logprobs for chain in chains], batch_first=True)
    chooses = window is not None and kind != "sliding"
    with torch.no_grad():
        assert_close(tc.naive_chain_logprobs(model, chains).logprobs, recorded)
        for options in ({}, {"anchored": False, "chunk_tokens": 3}):
            assert_close(tc.replay_chains(model, chains, **options).logprobs, recorded)
        if chooses:
            by_link = torch.nn.utils.rnn.pad_sequence([link.logprobs for link in links_of(chains)], batch_first=True)
            assert_close(tc.naive_logprobs(model, links_of(chains), choose=True).logprobs, by_link)
    for chain in chains:
        held = [len(link.prompt_ids) - len(chain.prompt_ids) for link in chain.links]
        assert held == sorted(held), "what was kept leaves no more"
        assert window is None or all(later - earlier <= window + 1 for earlier, later in pairwise(held))
