"""Chains are one policy in all executions: sampled, replayed, by the definition, and by plain passes of the model."""

from __future__ import annotations

import pytest
import torch

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients, max_difference, padded, weighted_loss
from support.models import tiny_model
from thoughtcache.chains.chain import links_of
from thoughtcache.chains.given import split_trace
from thoughtcache.sampler import decode_step
from thoughtcache.sampler.events import Finished, Started
from thoughtcache.sampler.given import rollouts_of_given
from thoughtcache.sampler.slots.slot_cache import SlotCache

QUESTIONS = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8], [9]]
MARKOVIAN = tc.MarkovianThinking(context=9, keep_first=2, keep_last=3, max_links=3)
OPEN, CLOSE, TLDR = [7], [11, 12], [20, 21]
FOLDING = tc.StepFolding(
    opening=OPEN, closing=CLOSE, separator=TLDR, max_steps=4, step_tokens=12, summary_tokens=4, max_prompt_tokens=40
)
STEPS = [1, 2, 3, *OPEN, 4, *CLOSE, 5, *OPEN, 8, 9, *CLOSE, 2, 6, *OPEN, *CLOSE, 10, 13, 2]
"""A trace of three steps, written by hand."""
MODELS = {
    "sliding": {},
    "two leave, random": {"eviction": "random", "evict_fraction": 0.4},
    "h2o, rolling": {"eviction": "h2o", "positions": "rolling"},
    "delta": {"state_rule": "delta", "window": 3},
    "memory in attention": {"memory": "attention"},
    "full cache": {"window": None},
    "window of the question": {"window": "prompt"},
}
UNEVEN = {"window": 4, "evict_fraction": 0.5, "eviction_budgets": [6, 2], "eviction": "random", "positions": "rolling"}


def recorded(chains) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([chain.logprobs for chain in chains], batch_first=True)


def stopping_token(model, thinking=MARKOVIAN) -> int:
    """A token with which one chain ends in its second link, and another one never."""
    free = tc.rollout_chains(model, QUESTIONS, thinking, ignore_eos=True)
    for chain in free:
        for token in chain.links[1].token_ids[:-1]:
            if token not in chain.links[0].token_ids and any(token not in other.token_ids for other in free):
                return token
    raise AssertionError("no token ends one chain in its second link; use other questions")


def markovian_chains(model, **arguments):
    """Chains of different numbers of links, one of which ends early."""
    chains = tc.rollout_chains(model, QUESTIONS, MARKOVIAN, stop_ids=[stopping_token(model)], **arguments)
    assert {chain.end for chain in chains} == {"stop", "length"}
    assert any(len(chain.links) == 2 for chain in chains)
    assert any(len(chain.links) == 3 for chain in chains)
    return chains


def check_executions(model, chains):
    for chain in chains:
        split = split_trace(chain.thinking, chain.prompt_ids, chain.token_ids)[0]
        assert [(link.prompt_ids, link.token_ids) for link in chain.links] == split
    with torch.no_grad():
        naive = tc.naive_chain_logprobs(model, chains)
        assert_close(naive.logprobs, recorded(chains))
        for options in ({}, {"anchored": False}):
            out = tc.replay_chains(model, chains, **options)
            assert_close(out.logprobs, recorded(chains))
            assert_close(out.entropies, naive.entropies)
            assert torch.equal(out.mask, naive.mask)
    assert naive.mask.sum(dim=1).tolist() == [len(chain.token_ids) for chain in chains]


@pytest.mark.parametrize("kind", MODELS)
def test_markovian_chains(kind):
    model = tiny_model(**MODELS[kind])
    chains = markovian_chains(model)
    check_executions(model, chains)
    for link in links_of(chains):
        bound = model.peft_config["default"].window
        most = {"prompt": 7, None: 0}.get(bound, bound)
        assert bool(link.evictions) == bool(most and len(link.token_ids) - 1 > most)


@pytest.mark.parametrize("kind", ["sliding", "h2o, rolling", "full cache", "budgets by layer"])
def test_folded_chains_of_a_trace_written_by_hand(kind):
    model = tiny_model(**{**MODELS, "budgets by layer": UNEVEN}[kind])
    chains = tc.given_chains(model, FOLDING, [[3, 1, 4], [6]], [STEPS, STEPS[7:]])
    assert [len(chain.links) for chain in chains] == [4, 3]
    assert [chain.end for chain in chains] == ["stop", "stop"]
    one, two, three = [*TLDR, 7, 4, 11, 12], [*TLDR, 7, 8, 9, 11, 12], [*TLDR, 7, 11, 12]
    assert [link.prompt_ids for link in chains[0].links] == [
        [3, 1, 4],
        [3, 1, 4, *one],
        [3, 1, 4, *one, *two],
        [3, 1, 4, *one, *two, *three],
    ]
    check_executions(model, chains)


@pytest.mark.parametrize("fold", [True, False])
def test_folded_chains_that_are_sampled(fold):
    """Markers that a random model writes often enough: single tokens, in one of many seeds."""
    model = tiny_model()
    thinking = tc.StepFolding(
        opening=[7], closing=[11], max_steps=3, step_tokens=20, fold=fold, unfold_tokens=20, max_prompt_tokens=60
    )
    chains = tc.rollout_chains(model, QUESTIONS * 16, thinking, seed=3)
    if fold:
        assert {chain.end for chain in chains} == {"length", "invalid"}
        assert max(len(chain.links) for chain in chains) > 1
        assert all(11 not in link.token_ids[:-1] for link in links_of(chains))
    else:
        assert {len(chain.links) for chain in chains} == {1}
    check_executions(model, [max(chains, key=lambda chain: len(chain.links)), *chains[:3]])


@pytest.mark.parametrize("method", ["markovian", "folding"])
def test_gradients_are_those_of_the_definition(method):
    model = tiny_model(window=3, evict_fraction=0.4)
    chains = (
        markovian_chains(model)
        if method == "markovian"
        else tc.given_chains(model, FOLDING, [[3, 1, 4], [6]], [STEPS, STEPS[7:]])
    )
    expected = gradients(model, lambda: weighted_loss(tc.naive_chain_logprobs(model, chains)))
    for options in ({}, {"recompute": False}, {"anchored": False}, {"chunk_tokens": 2}):
        found = gradients(model, lambda options=options: weighted_loss(tc.replay_chains(model, chains, **options)))
        assert_gradients_match(found, expected)


def test_without_a_window_every_token_is_that_of_a_plain_pass_over_its_context():
    model = tiny_model(window=None, initial_state="identity", absorb=False, r=5)
    chains = [
        *markovian_chains(model),
        *tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS]),
    ]
    for chain in chains:
        for t, (token, logprob) in enumerate(zip(chain.token_ids, chain.logprobs, strict=True)):
            context = chain.thinking.naive_context(chain.prompt_ids, chain.token_ids, chain.boundaries, t)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context])).logits[0, -1]
            assert abs(logits.log_softmax(-1)[token] - logprob) < 1e-12


def test_boundaries_make_a_difference():
    model = tiny_model(window=None)
    chains = [chain for chain in markovian_chains(model) if len(chain.links) == 3]
    whole = [
        tc.Rollout(
            prompt_ids=chain.prompt_ids,
            token_ids=chain.token_ids,
            logprobs=chain.logprobs,
            finish_reason="length",
            settings=chain.links[0].settings,
        )
        for chain in chains
    ]
    with torch.no_grad():
        unbroken = tc.replay(model, whole).logprobs
    assert max_difference(unbroken[:, :9], recorded(chains)[:, :9]) < 1e-12
    assert (unbroken[:, 9:] - recorded(chains)[:, 9:]).abs().mean() > 0.05


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_chains_do_not_depend_on_their_neighbours(batch_size):
    model = tiny_model()
    expected, events = markovian_chains(model), []
    found = markovian_chains(model, batch_size=batch_size, on_event=events.append)
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.end == other.end
        assert_close(one.logprobs, other.logprobs)
    alone = tc.rollout_chains(model, QUESTIONS[2:3], MARKOVIAN, seed=[5], ignore_eos=True)[0]
    among = tc.rollout_chains(model, QUESTIONS, MARKOVIAN, seed=[1, 2, 5, 3], ignore_eos=True)[2]
    assert alone.token_ids == among.token_ids
    kinds = [type(event) for event in events if isinstance(event, Started | Finished)]
    if batch_size == 2:
        # Nobody waits for the slowest: a later link begins while the first link of another chain is still to come.
        assert kinds[:3] == [Started, Started, Finished]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_static_shapes_have_room_for_every_link_at_once(batch_size, monkeypatch):
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: function)
    widths: list[int] = []
    reserve = SlotCache.reserve

    def watched(self, rooms):
        reserve(self, rooms)
        widths.append(self.columns.capacities[0])

    monkeypatch.setattr(SlotCache, "reserve", watched)
    model = tiny_model()
    thinking = tc.MarkovianThinking(context=80, keep_first=20, keep_last=40, max_links=2)
    expected = tc.rollout_chains(model, QUESTIONS, thinking, ignore_eos=True)
    assert len(set(widths)) > 1
    del widths[:]
    found = tc.rollout_chains(model, QUESTIONS, thinking, ignore_eos=True, compile=True, batch_size=batch_size)
    assert set(widths) == {128}, "another width is another graph"
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert_close(one.logprobs, other.logprobs)


def test_a_chain_of_one_link_is_the_rollout():
    model = tiny_model()
    free = tc.rollout(model, QUESTIONS, max_new_tokens=9, ignore_eos=True)
    stops = sorted({rollout.token_ids[6] for rollout in free})
    rollouts = tc.rollout(model, QUESTIONS, max_new_tokens=9, stop_ids=stops)
    chains = tc.rollout_chains(model, QUESTIONS, MARKOVIAN, stop_ids=stops)
    assert {rollout.finish_reason for rollout in rollouts} == {"stop"}
    assert [chain.token_ids for chain in chains] == [rollout.token_ids for rollout in rollouts]
    assert_close(recorded(chains), padded(rollouts))
    with torch.no_grad():
        assert torch.equal(tc.replay_chains(model, chains).logprobs, tc.replay(model, rollouts).logprobs)


@pytest.mark.parametrize("total", [10, 13, 14, 17, 99])
def test_the_budget_of_a_whole_chain(total):
    chains = tc.rollout_chains(tiny_model(), QUESTIONS, MARKOVIAN, max_new_tokens=total, ignore_eos=True)
    assert {len(chain.token_ids) for chain in chains} == {min(total, 9 + 4 + 4)}
    assert {chain.end for chain in chains} == {"length"}
    assert [len(link.token_ids) for link in chains[0].links] == {
        10: [9, 1], 13: [9, 4], 14: [9, 4, 1], 17: [9, 4, 4], 99: [9, 4, 4]
    }[total]  # fmt: skip


def test_records_of_keys_and_values_serve_the_learner():
    model = tiny_model()
    chains = markovian_chains(model, record_kv="device")
    expected = gradients(model, lambda: weighted_loss(tc.replay_chains(model, chains)))
    found = gradients(model, lambda: weighted_loss(tc.replay_chains(model, chains, reuse=True)))
    assert_gradients_match(found, expected)


@pytest.mark.parametrize(
    ("thinking", "arguments", "message"),
    [
        (tc.MarkovianThinking(), {}, "7 tokens and 8192 thoughts of a link .* 160 positions.* options context,"),
        (MARKOVIAN, {"max_new_tokens": 9}, "ends inside the first context of 9 thoughts"),
        (MARKOVIAN, {"filters": tc.TokenFilters(min_new_tokens=2)}, "min_new_tokens=2 has no meaning for a chain"),
        (MARKOVIAN, {"batch_size": 0}, "batch_size must be at least 1"),
        (tc.StepFolding(opening=[7], closing=[99], step_tokens=9, max_steps=2), {}, "sequence 0 holds token 99"),
        (
            tc.StepFolding(opening=[7], closing=[8]),
            {"max_new_tokens": 154},
            "question of 7 tokens and 154 thoughts .* max_new_tokens=154, or of the thinking options step_tokens,",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(thinking, arguments, message):
    with pytest.raises(ValueError, match=message):
        tc.rollout_chains(tiny_model(), QUESTIONS, thinking, **arguments)


def test_a_chain_needs_positions_for_its_budget_alone():
    model, folding = tiny_model(), tc.StepFolding(opening=[7], closing=[8])
    chains = tc.rollout_chains(model, QUESTIONS, folding, max_new_tokens=153, seed=2, ignore_eos=True, anchors=False)
    assert all(len(link.prompt_ids) + len(link.token_ids) <= 160 for link in links_of(chains))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_slots_of_chains_that_are_over_are_dropped_and_no_link_waits_for_it(batch_size, monkeypatch):
    slots: list[int] = []
    decode = decode_step.DecodeStep.__call__

    def watched(self, cache, tokens):
        slots.append(cache.num_slots)
        return decode(self, cache, tokens)

    model = tiny_model()
    thinking = tc.MarkovianThinking(context=9, keep_first=2, keep_last=3, max_links=6)
    free = tc.rollout_chains(model, QUESTIONS, thinking, ignore_eos=True, seed=[5] * 4)
    stops = sorted({token for chain in free[:3] for token in chain.token_ids[:9]} - {*free[3].token_ids})
    alone = [tc.rollout_chains(model, [ids], thinking, stop_ids=stops, seed=[5])[0] for ids in QUESTIONS]
    monkeypatch.setattr(decode_step.DecodeStep, "__call__", watched)
    found = tc.rollout_chains(model, QUESTIONS, thinking, stop_ids=stops, seed=[5] * 4, batch_size=batch_size)
    assert [chain.token_ids for chain in found] == [chain.token_ids for chain in alone]
    lengths = [len(chain.token_ids) for chain in found]
    assert lengths[3] == 9 + 5 * 4, "it goes on over five boundaries"
    assert max(lengths[:3]) < 9, "the others end before the first one"
    assert slots[max(lengths[:3]) :] == [1] * (len(slots) - max(lengths[:3]))
    if batch_size is None:
        assert len(slots) == lengths[3] - 6, "a link that goes on has a slot at once; its last token is not processed"


def test_a_question_that_nothing_can_be_folded_behind_gets_one_link():
    model = tiny_model()
    folding = tc.StepFolding(opening=[7], closing=[11], max_steps=3, step_tokens=20, max_prompt_tokens=8)
    chains = tc.rollout_chains(model, QUESTIONS * 16, folding, seed=3)
    long = [chain for chain in chains if len(chain.prompt_ids) == 7]
    assert {len(chain.links) for chain in long} == {1}
    assert max(len(chain.links) for chain in chains) > 1
    with pytest.raises(ValueError, match="7 tokens, 9 with the separator"):
        folding.check(7, 60)


def test_given_texts_take_turns_in_few_slots():
    model, running, most = tiny_model(eviction="h2o"), set(), []
    links = links_of(tc.given_chains(model, FOLDING, [[3, 1, 4], [6]], [STEPS, STEPS[7:]]))

    def watch(event):
        if isinstance(event, Started):
            running.add(event.request)
            most.append(len(running))
        elif isinstance(event, Finished):
            running.discard(event.request)

    found = rollouts_of_given(model, links, watch, batch_size=2)
    assert max(most) == 2
    for one, other in zip(found, links, strict=True):
        assert (one.prompt_ids, one.token_ids) == (other.prompt_ids, other.token_ids)
        assert_close(one.logprobs, other.logprobs)
        assert all(torch.equal(a.slots, b.slots) for a, b in zip(one.evictions, other.evictions, strict=True))


def test_an_empty_trace_is_refused():
    with pytest.raises(ValueError, match="trace 1 is empty; every trace needs at least one token"):
        tc.given_chains(tiny_model(), FOLDING, [[3], [4]], [STEPS, []])
    with pytest.raises(ValueError, match="the trace is empty"):
        split_trace(FOLDING, [3], [])


def test_every_question_needs_a_trace():
    with pytest.raises(ValueError, match="2 questions and 1 traces were given"):
        tc.given_chains(tiny_model(), FOLDING, [[3], [4]], [STEPS])
