"""Scores of continuations against the naive policy, whatever the batch is; and what a generation asks of the engine."""

from __future__ import annotations

import pytest
import torch

import thoughtcache as tc
from support.models import tiny_model
from thoughtcache.evaluation.continuations import Continuation, score_continuations
from thoughtcache.harness.generation import asked, request_of
from thoughtcache.policy.handle import find_tuner
from thoughtcache.sampler.given import given_text, with_own_evictions

TEXTS = [([3, 1, 4], 9, 2), ([6], 14, 14), ([2, 7, 1, 8], 1, 1), ([9, 9], 6, 1), ([5], 3, 2)]
"""Prompt, number of thoughts, how many of them are scored."""


@pytest.mark.parametrize("eviction", ["sliding", "h2o"])
def test_scores_are_those_of_the_naive_policy(eviction):
    model = tiny_model(window=4, evict_fraction=0.5, eviction=eviction, state_rule="gated")
    cache = find_tuner(model).thought_config.resolve_window(None)
    generator = torch.Generator().manual_seed(2)
    texts = [
        Continuation(
            prompt_ids=prompt, thought_ids=torch.randint(29, (count,), generator=generator).tolist(), num_scored=scored
        )
        for prompt, count, scored in TEXTS
    ]
    # One whose end is what greedy decoding gives.
    (greedy,) = tc.rollout(model, [[3, 1, 4]], max_new_tokens=8, temperature=0.0, ignore_eos=True)
    texts.append(Continuation(prompt_ids=[3, 1, 4], thought_ids=greedy.token_ids, num_scored=5))
    found = score_continuations(model, texts, cache, batch_size=4)
    assert found == score_continuations(model, texts, cache, batch_size=4)
    for number, (text, score) in enumerate(zip(texts, found, strict=True)):
        (row,) = with_own_evictions(model, [given_text(text.prompt_ids, text.thought_ids, cache, seed=number)])
        with torch.no_grad():
            naive = tc.naive_logprobs(model, [row], choose=eviction != "sliding").logprobs[0]
        assert score.logprob == pytest.approx(naive[-text.num_scored :].sum().item(), abs=1e-11)
    assert [score.is_greedy for score in found[-1:]] == [True]
    assert not all(score.is_greedy for score in found)
    alone = score_continuations(model, texts, cache, batch_size=1)
    assert [one.logprob for one in alone] == pytest.approx([one.logprob for one in found], abs=1e-11)
    counted: list[int] = []
    score_continuations(model, texts, cache, batch_size=4, progress=counted.append)
    assert counted == [4, 2]


def test_a_generation_is_asked_for_as_the_harness_says_it():
    plain = {"until": ["w5", ""], "max_gen_toks": 7, "do_sample": False, "temperature": 0.0}
    own = asked(plain)
    assert (own.temperature, own.max_new_tokens, own.stop_strings) == (0.0, 7, ("w5",))
    # Greedy decoding takes the most likely token through any of these.
    assert asked({**plain, "top_p": 0.5, "top_k": 3}).filters == tc.TokenFilters()
    assert asked({**plain, "repetition_penalty": 1.5}).filters == tc.TokenFilters(repetition_penalty=1.5)
    drawn = asked({**plain, "do_sample": True, "temperature": 0.7, "top_p": 0.5})
    assert (drawn.temperature, drawn.filters) == (0.7, tc.TokenFilters(top_p=0.5))
    assert asked({**plain, "do_sample": True}).temperature == 1.0
    with pytest.raises(ValueError, match=r"'num_beams' is not known to the engine.*leave it out"):
        asked({**plain, "num_beams": 4})
    request = request_of(own, [4, 5, 6], 1, 9)
    assert (request.prompt_ids, request.given_tokens, request.max_new_tokens) == ([4], [5, 6], 9)
    assert request_of(own, [4, 5, 6], 3, 9).given_tokens is None
