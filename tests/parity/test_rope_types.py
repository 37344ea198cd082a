"""Scaled rotary embeddings: three executions agree as far as positions reach, and what lies beyond is refused.

The tiny models have heads of size 4, hence two frequencies. Their original length is 16 positions.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close
from support.models import adapt, tiny_base, tiny_model

ORIGINAL = 16
PROMPTS = [[3, 4, 5, 6, 7, 8], [9, 10]]
THETA = {"rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0],
    "long_factor": [2.0, 5.0],
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
    **THETA,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, **THETA}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL, **THETA}
LINEAR = {"rope_type": "linear", "factor": 4.0, **THETA}
# (parameters, max_position_embeddings): longrope says its original length itself, dynamic takes the model's.
VARYING = [(LONGROPE, 4 * ORIGINAL), (DYNAMIC, ORIGINAL)]
# As model pages say to write it: the factor is there, the original max_position_embeddings stays.
STRETCHED = [(YARN, ORIGINAL), (LINEAR, ORIGINAL)]
REMEDY = "frequencies of its rope type '{}' are fixed; shorten either, or load the model with a rope type"


def named(case):
    return case[0]["rope_type"]


def rope_model(case, **config):
    rope, positions = case
    return adapt(tiny_base(rope_parameters=dict(rope), max_position_embeddings=positions), **config)


def assert_three_executions_agree(model, new_tokens):
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=new_tokens)
    with torch.no_grad():
        replayed, naive = tc.replay(model, rollouts), tc.naive_logprobs(model, rollouts)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.token_ids)
        assert_close(replayed.logprobs[row, :length], rollout.logprobs)
        assert_close(naive.logprobs[row, :length], rollout.logprobs)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("case", VARYING, ids=named)
def test_up_to_the_original_length_frequencies_are_fixed_and_everything_is_exact(case, window):
    assert_three_executions_agree(rope_model(case, window=window), ORIGINAL - len(PROMPTS[0]))


@pytest.mark.parametrize("case", STRETCHED, ids=named)
def test_a_factor_stretches_the_original_length(case):
    assert_three_executions_agree(rope_model(case, window=7), 4 * ORIGINAL - len(PROMPTS[0]))


@pytest.mark.parametrize("case", STRETCHED, ids=named)
def test_beyond_the_stretched_length_the_remedy_is_not_the_one_that_was_taken(case):
    message = f"more than the {4 * ORIGINAL} positions of the model; .*raise the factor.*{case[0]['rope_type']}, 4"
    with pytest.raises(ValueError, match=message):
        tc.rollout(rope_model(case), PROMPTS, max_new_tokens=4 * ORIGINAL - len(PROMPTS[0]) + 1)


@pytest.mark.parametrize("case", VARYING, ids=named)
def test_a_rollout_whose_frequencies_would_change_is_refused(case):
    with pytest.raises(ValueError, match=REMEDY.format(case[0]["rope_type"])):
        tc.rollout(rope_model(case), PROMPTS, max_new_tokens=ORIGINAL - len(PROMPTS[0]) + 1)


@pytest.mark.parametrize("score", [tc.replay, tc.naive_logprobs], ids=lambda score: score.__name__)
@pytest.mark.parametrize("case", VARYING, ids=named)
def test_scoring_a_rollout_whose_frequencies_would_change_is_refused(case, score):
    longer = tc.rollout(tiny_model(), PROMPTS, max_new_tokens=ORIGINAL)
    with pytest.raises(ValueError, match=REMEDY.format(case[0]["rope_type"])):
        score(rope_model(case), longer)


@pytest.mark.parametrize("case", VARYING, ids=named)
def test_rows_that_are_padded_to_a_longer_batch_are_refused_together_and_exact_alone(case):
    model = rope_model(case)
    long_prompt = tc.rollout(model, [[3] * 12], max_new_tokens=4)
    long_thoughts = tc.rollout(model, [[3, 4]], max_new_tokens=14)
    assert len(long_thoughts[0].token_ids) == 14
    with torch.no_grad():
        for rollouts in (long_prompt, long_thoughts):
            assert_close(tc.replay(model, rollouts).logprobs[0], rollouts[0].logprobs)
        with pytest.raises(ValueError, match="prompt has 12 tokens and max_new_tokens is 14"):
            tc.replay(model, [replace(long_prompt[0], settings=long_thoughts[0].settings), *long_thoughts])


def test_rows_of_fixed_frequencies_count_each_for_itself():
    model = rope_model(({"rope_type": "default", **THETA}, ORIGINAL))
    rollouts = tc.rollout(model, [[3] * 12], max_new_tokens=4) + tc.rollout(model, [[3, 4]], max_new_tokens=14)
    with torch.no_grad():
        scored = tc.replay(model, rollouts)
    for row, rollout in enumerate(rollouts):
        assert_close(scored.logprobs[row, : len(rollout.token_ids)], rollout.logprobs)


@pytest.mark.parametrize("case", [*VARYING, *STRETCHED], ids=named)
def test_generate_goes_as_far_as_rollout(case):
    model, prompt = rope_model(case, window=5), PROMPTS[:1]
    reach = ORIGINAL if case in VARYING else 4 * ORIGINAL
    new_tokens = reach - len(prompt[0])
    expected = tc.rollout(model, prompt, max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True)[0].token_ids
    found = model.generate(input_ids=torch.tensor(prompt), max_new_tokens=new_tokens, do_sample=False)
    assert found[0, len(prompt[0]) :].tolist() == expected
    with pytest.raises(ValueError, match=f"more than the {reach} positions of the model"):
        model.generate(input_ids=torch.tensor(prompt), max_new_tokens=new_tokens + 1, do_sample=False)
