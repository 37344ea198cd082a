"""Chains of random sizes, markers and stop tokens, in few slots: replay and the definition agree with the samples."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thoughtcache as tc
from support.compare import assert_close
from support.models import VOCABULARY, tiny_model
from thoughtcache.chains.given import split_trace

MODELS = {
    "sliding": tiny_model(window=4, evict_fraction=0.5, state_rule="gated"),
    "random, rolling": tiny_model(window=3, eviction="random", positions="rolling"),
    "full cache": tiny_model(window=None),
}
tokens = st.integers(0, VOCABULARY - 1)
markovian = st.fixed_dictionaries(
    {
        "context": st.integers(4, 9),
        "keep_first": st.integers(0, 1),
        "keep_last": st.integers(0, 2),
        "max_links": st.integers(2, 4),
    }
)
folding = st.fixed_dictionaries(
    {
        "markers": st.lists(tokens, min_size=2, max_size=2, unique=True),
        "separator": st.lists(tokens, max_size=2),
        "max_steps": st.integers(2, 4),
        "step_tokens": st.integers(4, 12),
        "summary_tokens": st.integers(0, 9),
    }
)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.one_of(markovian, folding),
    prompts=st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=5),
    kind=st.sampled_from(sorted(MODELS)),
    num_slots=st.integers(1, 3),
    stop_ids=st.lists(tokens, max_size=3),
    seed=st.integers(0, 1000),
    budget=st.integers(10, 40),
)
def test_every_schedule_agrees_with_the_definition(sizes, prompts, kind, num_slots, stop_ids, seed, budget):
    if "markers" in sizes:
        opening, closing = sizes["markers"]
        rest = {name: value for name, value in sizes.items() if name != "markers"}
        thinking = tc.StepFolding(opening=[opening], closing=[closing], max_prompt_tokens=30, **rest)
    else:
        thinking = tc.MarkovianThinking(**sizes)
    model = MODELS[kind]
    chains = tc.rollout_chains(
        model, prompts, thinking, max_new_tokens=budget, batch_size=num_slots, stop_ids=stop_ids, seed=seed
    )
    with torch.no_grad():
        naive, out = tc.naive_chain_logprobs(model, chains), tc.replay_chains(model, chains)
    for row, (prompt, chain) in enumerate(zip(prompts, chains, strict=True)):
        length = len(chain.token_ids)
        assert chain.prompt_ids == prompt
        assert 1 <= length <= budget
        assert out.mask[row].sum() == length
        assert_close(naive.logprobs[row, :length], chain.logprobs)
        assert_close(out.logprobs[row, :length], chain.logprobs)
        pairs, _ = split_trace(thinking, prompt, chain.token_ids)
        assert [(link.prompt_ids, link.token_ids) for link in chain.links] == pairs
        closings = {sequence[0] for sequence in thinking.stop_sequences}
        ends = set(stop_ids) - closings  # a closing marker may be a stop token as well
        assert not set(chain.token_ids[:-1]) & ends
        if chain.token_ids[-1] not in closings:
            assert (chain.end == "stop") == (chain.token_ids[-1] in ends)
