"""Step folding with keys and values as they were written: sampled, by the definition, and by one masked pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import thoughtcache as tc
from support.compare import (
    assert_close,
    assert_gradients_match,
    gradient_error,
    gradients,
    max_difference,
    weighted_loss,
)
from support.models import adapt, tiny_base, tiny_model
from thoughtcache.chains.chain import links_of
from thoughtcache.chains.given import split_trace
from thoughtcache.learner import waves
from thoughtcache.measuring.live_bytes import LiveBytes
from thoughtcache.policy import naive
from thoughtcache.policy.continuations import begins_last
from thoughtcache.sampler import decode_step
from thoughtcache.sampler.request import GoingOn

QUESTIONS = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8], [9]]
OPEN, CLOSE = [7], [11, 12]
FOLDING = tc.StepFolding(
    opening=OPEN, closing=CLOSE, keep="written", max_steps=4, step_tokens=12, summary_tokens=4, max_prompt_tokens=40
)
STEPS = [1, 2, 3, *OPEN, 4, *CLOSE, 5, *OPEN, 8, 9, *CLOSE, 2, 6, *OPEN, *CLOSE, 10, 13, 2]
"""A trace of three steps, written by hand: thoughts 0-6, 7-12 and 13-17, then an answer."""
DRAWN = tc.StepFolding(
    opening=[7], closing=[11], keep="written", max_steps=4, step_tokens=40, summary_tokens=40, max_prompt_tokens=120
)
"""Markers that a random model writes often enough."""
MODELS: dict[str, dict[str, Any]] = {
    "full cache": {"window": None},
    "sliding": {"window": 4},
    "two leave, random": {"window": 5, "eviction": "random", "evict_fraction": 0.4},
    "h2o": {"window": 4, "eviction": "h2o"},
    "snapkv, delta": {"window": 6, "evict_fraction": 0.5, "eviction": "snapkv", "state_rule": "delta"},
    "gated, full cache": {"window": None, "state_rule": "gated"},
    "norm when read": {"window": 3, "state_norm_at": "read"},
    "memory in attention": {"window": 4, "memory": "attention"},
    "memory in attention, tova": {"window": 4, "memory": "attention", "eviction": "tova"},
    "both memories, random": {"window": 3, "memory": "both", "eviction": "random"},
    "no state": {"window": 4, "initial_state": "identity", "absorb": False, "r": 5},
}


def folding_model(**config: Any) -> Any:
    """A random model that writes the markers of `DRAWN` often."""
    base = tiny_base()
    head = torch.nn.Linear(*base.lm_head.weight.shape[::-1], dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(base.lm_head.weight)
        head.bias.zero_()[[7, 11]] = 1.7
    base.lm_head = head
    return adapt(base, **config)


def recorded(chains: list[tc.chains.chain.Chain]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([chain.logprobs for chain in chains], batch_first=True)


def drawn_chains(model: Any, **arguments: Any) -> list[Any]:
    """Chains of different numbers of links, some of several."""
    chains = tc.rollout_chains(model, QUESTIONS * 16, DRAWN, **{"seed": 3, "max_new_tokens": 70, **arguments})
    assert max(len(chain.links) for chain in chains) > 2
    return chains


def some(chains: list[Any]) -> list[Any]:
    """The chains of most links and the first ones."""
    return [*sorted(chains, key=lambda chain: -len(chain.links))[:3], *chains[:2]]


@pytest.mark.parametrize("kind", MODELS)
def test_given_and_drawn_chains_are_those_of_the_definition(kind: str) -> None:
    model = folding_model(**MODELS[kind])
    given = tc.given_chains(model, FOLDING, [[3, 1, 4], [6]], [STEPS, STEPS[7:]])
    assert [len(chain.links) for chain in given] == [4, 3]
    drawn = some(drawn_chains(model))
    for chains in (given, drawn):
        with torch.no_grad():
            assert_close(tc.naive_chain_logprobs(model, chains).logprobs, recorded(chains))
        for chain in chains:
            split = split_trace(chain.thinking, chain.prompt_ids, chain.token_ids)[0]
            assert [link.token_ids for link in chain.links] == [tokens for _, tokens in split]
    window = MODELS[kind]["window"]
    evicted = [bool(link.evictions) for link in links_of(drawn)]
    assert any(evicted) == (window is not None)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if "eviction" in MODELS[kind]])
def test_what_is_chosen_is_what_the_loops_choose(kind: str) -> None:
    """Thoughts of an open summary leave last: had they not, heads would keep different ones, which the loops refuse."""
    model = folding_model(**MODELS[kind])
    chains = some(drawn_chains(model))
    with torch.no_grad():
        chosen = tc.naive_logprobs(model, links_of(chains), choose=True)
        expected = tc.naive_logprobs(model, links_of(chains))
    assert_close(chosen.logprobs, expected.logprobs)


def seen_positions(monkeypatch: pytest.MonkeyPatch, model: Any, chain: Any) -> Iterator[list[int]]:
    """Positions of all keys that each processed token finds in the last layer, in the loops."""
    found: list[list[int]] = []
    as_tensors = naive._as_tensors

    def watched(prompt: Any, thoughts: Any) -> Any:
        found.append([place for _, _, place in prompt] + [place for _, _, place in thoughts[0]])
        return as_tensors(prompt, thoughts)

    monkeypatch.setattr(naive, "_as_tensors", watched)
    with torch.no_grad():
        tc.naive_chain_logprobs(model, [chain])
    return iter(found[model.base_model.num_layers - 1 :: model.base_model.num_layers])


def test_the_resident_set_is_what_the_definition_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(window=None)
    (chain,) = tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS])
    found = list(seen_positions(monkeypatch, model, chain))
    question, first, second, third = [0, 1, 2], [6, 7, 8, 9], [11, 12, 13, 14, 15], [18, 19, 20]
    assert STEPS[6 - 3 : 10 - 3] == [*OPEN, 4, *CLOSE], "positions are counted from the question on"
    expected = [list(range(position)) for position in range(9)]
    # The last token of a marker is processed behind the fold, as are all that follow it.
    expected += [[*question, *range(6, position)] for position in range(9, 15)]
    expected += [[*question, *first, *range(11, position)] for position in range(15, 20)]
    expected += [[*question, *first, *second, *range(18, position)] for position in range(20, 23)]
    assert third == list(range(18, 21))
    assert found == expected
    assert [link.continues and link.continues.first_kept for link in chain.links] == [None, 3, 1, 2]
    assert [link.continues and link.continues.position for link in chain.links] == [None, 10, 16, 21]


def test_the_resident_set_under_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three thoughts of a link stay; of the second summary the first thought leaves before its marker closes."""
    model = tiny_model(window=3, evict_fraction=0.3)
    (chain,) = tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS])
    found = list(seen_positions(monkeypatch, model, chain))[3:]
    question, first, second = [0, 1, 2], [6, 7, 8, 9], [12, 13, 14, 15]
    assert found == [
        question, [*question, 3], [*question, 3, 4], [*question, 4, 5], [*question, 5, 6], [*question, 6, 7],
        [*question, 6, 7, 8], [*question, *first], [*question, *first, 10], [*question, *first, 10, 11],
        [*question, *first, 11, 12], [*question, *first, 12, 13],
        [*question, *first, 12, 13, 14], [*question, *first, *second], [*question, *first, *second, 16],
        [*question, *first, *second, 16, 17], [*question, *first, *second, 17, 18],
        [*question, *first, *second, 18, 19], [*question, *first, *second, 18, 19, 20],
        [*question, *first, *second, 18, 19, 20, 21],
    ]  # fmt: skip
    assert [link.prompt_ids for link in chain.links] == [
        [3, 1, 4], [3, 1, 4, 7, 4, 11, 12], [3, 1, 4, 7, 4, 11, 12, 8, 9, 11, 12],
        [3, 1, 4, 7, 4, 11, 12, 8, 9, 11, 12, 7, 11, 12],
    ]  # fmt: skip


def test_without_a_window_it_is_one_pass_in_which_details_are_masked() -> None:
    """Nothing of ours but the adapter takes part in that pass: a mask says who sees whom."""
    model = folding_model(window=None, initial_state="identity", absorb=False, r=5)
    given = tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS])
    for chain in [*given, *some(drawn_chains(model))]:
        tokens = chain.prompt_ids + chain.token_ids
        mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
        opening, start = list(chain.thinking.opening), len(chain.prompt_ids)
        for boundary in chain.boundaries:
            end = len(chain.prompt_ids) + boundary
            opened = next(i for i in range(start, end) if tokens[i : i + len(opening)] == opening)
            mask[end - 1 :, start:opened] = False
            start = end
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([tokens]),
                attention_mask=torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e30)[None, None],
            ).logits[0]
        scores = logits.log_softmax(-1)[len(chain.prompt_ids) - 1 : -1]
        assert_close(scores.gather(1, torch.tensor(chain.token_ids)[:, None])[:, 0], chain.logprobs)


def test_a_summary_that_stays_differs_from_one_that_is_encoded_again() -> None:
    model = tiny_model(window=None)
    encoded = tc.StepFolding(opening=OPEN, closing=CLOSE, max_steps=4, step_tokens=12, summary_tokens=4)
    (kept,), (again,) = (tc.given_chains(model, thinking, [[3, 1, 4]], [STEPS]) for thinking in (FOLDING, encoded))
    assert [link.token_ids for link in kept.links] == [link.token_ids for link in again.links]
    assert max_difference(kept.links[0].logprobs, again.links[0].logprobs) < 1e-12
    assert (kept.logprobs[7:] - again.logprobs[7:]).abs().mean() > 0.05


def test_details_are_absorbed() -> None:
    """With a state that reads them, thoughts behind a fold depend on details that nobody attends to."""
    scores = []
    for absorb in (True, False):
        (chain,) = tc.given_chains(tiny_model(window=None, absorb=absorb), FOLDING, [[3, 1, 4]], [STEPS])
        scores.append(chain.logprobs)
        states = [link.continues.state for link in chain.links[1:]]
        assert all((state is not None) == absorb for state in states)
    assert max_difference(scores[0][:7], scores[1][:7]) < 1e-12
    assert (scores[0][7:] - scores[1][7:]).abs().mean() > 0.01


@pytest.mark.parametrize("batch_size", [7])
def test_chains_do_not_depend_on_their_neighbours(batch_size: int) -> None:
    model = folding_model(window=4, eviction="h2o")
    expected = drawn_chains(model)
    found = drawn_chains(model, batch_size=batch_size)
    for one, other in zip(found, expected, strict=True):
        assert [link.token_ids for link in one.links] == [link.token_ids for link in other.links]
        assert one.end == other.end
        assert_close(one.logprobs, other.logprobs)
    among = drawn_chains(model, seed=list(range(64)))
    number = max(range(len(among)), key=lambda number: len(among[number].links))
    (alone,) = tc.rollout_chains(model, [(QUESTIONS * 16)[number]], DRAWN, seed=[number], max_new_tokens=70)
    assert len(alone.links) > 2
    assert alone.token_ids == among[number].token_ids


def test_static_shapes_sample_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: function)
    model = folding_model(window=4, eviction="random")
    expected, found = drawn_chains(model), drawn_chains(model, compile=True, batch_size=5)
    assert [chain.token_ids for chain in found] == [chain.token_ids for chain in expected]
    assert_close(recorded(found), recorded(expected))


def test_an_engine_looks_in_every_round_for_what_goes_on() -> None:
    """On a GPU engines look every few rounds; what is drawn behind a marker in between would be in the cache."""
    model = tiny_model(window=4)
    asked = {"prompt_ids": [3, 1], "max_new_tokens": 3, "ignore_eos": True}
    with tc.Engine(model, num_slots=1) as engine:
        engine.looks_every = 16
        engine.add(tc.Request(**asked))
        assert engine.looks_every == 16
        engine.add(tc.Request(**asked, go_on=lambda rollout: None))
        assert engine.looks_every == 1
    wrong = tc.Request(**asked, go_on=lambda rollout: GoingOn(first_kept=1, request=tc.Request(**asked)))
    with pytest.raises(ValueError, match="the prompt of what goes on from request 0 is not what stays of it"):
        tc.Engine(model, num_slots=1).run([wrong])


def test_nothing_is_prefilled_at_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rounds = tiny_model(window=4), []
    decode = decode_step.DecodeStep.__call__

    def watched(self: Any, cache: Any, tokens: Tensor) -> Tensor:
        rounds.append(cache.num_slots)
        return decode(self, cache, tokens)

    monkeypatch.setattr(decode_step.DecodeStep, "__call__", watched)
    (chain,) = tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS])
    assert len(rounds) == len(chain.token_ids) - 1, "one pass per token, markers included, and no other"


def test_a_marker_that_may_be_beginning_leaves_last() -> None:
    assert [begins_last([1, 7, 8, 9, 7][:count], [7, 8, 9]) for count in range(6)] == [0, 1, 1, 1, 1, 1]
    assert begins_last([1, 7, 8, 1], [7, 8, 9]) == 4
    assert begins_last([7, 7, 8], [7, 8, 9]) == 1
    assert begins_last([1, 2, 7], [7, 8, 9]) == 2
    assert begins_last([1, 2], []) == 2


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"positions": "rolling"}, {}, 'positions="rolling" moves keys'),
        ({"window": 4, "eviction_budgets": [6, 2]}, {}, r"budgets of their own \(\[6, 2\]\)"),
        ({"window": 4, "eviction_budgets": [[6, 2], [4, 4]]}, {}, r"budgets of their own \(\[\[6, 2\], \[4, 4\]\]\)"),
        ({}, {"record_kv": "device"}, "record_kv='device' records one prompt"),
        ({}, {"max_new_tokens": 154}, "question of 7 tokens and 154 thoughts of a chain can be .* 160 positions"),
    ],
)
def test_what_cannot_keep_anything_is_refused(config: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tc.rollout_chains(tiny_model(**config), QUESTIONS, DRAWN, **{"max_new_tokens": 90, **arguments})


def test_what_stays_has_to_be_named_where_a_policy_chooses() -> None:
    engine = tc.Engine(tiny_model(window=4, eviction="random"), num_slots=1)
    request = tc.Request(prompt_ids=[3, 1], max_new_tokens=9, go_on=lambda _: None)
    with pytest.raises(ValueError, match="under the policy random every head would keep other thoughts"):
        engine.add(request)
    engine.add(replace(request, leaves_last=(5,)))
    tc.Engine(tiny_model(window=4), num_slots=1).add(request)


def test_links_that_stand_alone_are_refused() -> None:
    model = tiny_model(window=4)
    (chain,) = tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS])
    with pytest.raises(ValueError, match="rollout 0 goes on from the cache of another link"):
        tc.naive_logprobs(model, [chain.links[1]])
    with pytest.raises(ValueError, match="rollout 1 goes on from the cache of another link"):
        tc.naive_logprobs(model, [chain.links[0], chain.links[2]])
    with pytest.raises(ValueError, match="gradient='detached' is not defined"):
        tc.naive_logprobs(model, chain.links, gradient="detached")
    with pytest.raises(ValueError, match="separator"):
        tc.StepFolding(opening=[7], closing=[11], keep="written", separator=[1])


REPLAYS: tuple[dict[str, Any], ...] = (
    {},
    {"recompute": False},
    {"anchored": False},
    {"chunk_tokens": 2},
    {"checkpoint_layers": True, "kv_log": "host"},
)


@pytest.mark.parametrize("kind", MODELS)
def test_the_replay_and_its_gradients_are_those_of_the_definition(kind: str) -> None:
    """Two chains of unequal lengths: rows enter a wave in another order than they left the one before."""
    model = folding_model(**MODELS[kind])
    chains = tc.given_chains(model, FOLDING, [[3, 1, 4], [6]], [STEPS, [9, *STEPS[7:]]])
    if kind in ("sliding", "h2o"):
        chains.append(max(drawn_chains(model), key=lambda chain: len(chain.links)))
    out = tc.naive_chain_logprobs(model, chains)
    expected = gradients(model, lambda: weighted_loss(tc.naive_chain_logprobs(model, chains)))
    for options in REPLAYS:
        found: list[Any] = []

        def loss(options: dict[str, Any] = options, found: list[Any] = found) -> Tensor:
            found.append(tc.replay_chains(model, chains, **options))
            return weighted_loss(found[0])

        assert_gradients_match(gradients(model, loss), expected)
        assert_close(found[0].logprobs.detach(), recorded(chains))
        assert_close(found[0].entropies, out.entropies)
        assert torch.equal(found[0].mask, out.mask)


@pytest.mark.parametrize("what", ["keys", "states"])
def test_gradients_pass_from_wave_to_wave(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at the folds they are others: what the comparison above proves is not nothing."""
    model = tiny_model(window=4)
    chains = tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS])
    expected = gradients(model, lambda: weighted_loss(tc.replay_chains(model, chains)))
    fold = waves.fold_exit

    def cut(*arguments: Any, **options: Any) -> Any:
        end = fold(*arguments, **options)
        return replace(end, **{what: getattr(end, what).detach()})

    monkeypatch.setattr(waves, "fold_exit", cut)
    found = gradients(model, lambda: weighted_loss(tc.replay_chains(model, chains)))
    assert gradient_error(found, expected) > 1e-3


def test_a_replay_under_other_weights_makes_its_own_states() -> None:
    model = tiny_model(window=4)
    chains = tc.given_chains(model, FOLDING, [[3, 1, 4], [6]], [STEPS, STEPS[7:]])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.1)
        expected = tc.naive_chain_logprobs(model, chains).logprobs
        assert_close(tc.replay_chains(model, chains, anchored=False).logprobs, expected)
        assert max_difference(tc.replay_chains(model, chains).logprobs, expected) > 1e-6
        assert max_difference(recorded(chains), expected) > 1e-6


def test_other_traces_stand_beside_chains_that_go_on() -> None:
    model = tiny_model(window=4)
    (kept,) = tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS])
    (rollout,) = tc.rollout(model, [[6, 5]], max_new_tokens=9)
    out = tc.replay_chains(model, [rollout, kept, rollout])
    assert_close(out.logprobs.detach(), torch.nn.utils.rnn.pad_sequence(
        [rollout.logprobs, kept.logprobs, rollout.logprobs], batch_first=True
    ))  # fmt: skip


def peak_bytes(model: Any, num_steps: int, **options: Any) -> tuple[int, int]:
    """(live bytes at the highest point of a replay and its backward pass, thoughts)."""
    folding = tc.StepFolding(opening=OPEN, closing=CLOSE, keep="written", max_steps=9, step_tokens=40)
    step = [*range(13, 26), 1, 2, 3, *OPEN, *CLOSE]
    (chain,) = tc.given_chains(model, folding, [[3, 1, 4]], [step * num_steps + [5]])
    assert len(chain.links) == num_steps + 1
    with LiveBytes() as live:
        tc.replay_chains(model, [chain], chunk_tokens=4, **options).logprobs.sum().backward()
    model.zero_grad()
    return live.peak_bytes, len(chain.token_ids)


def test_memory_grows_by_keys_and_values_alone() -> None:
    model = tiny_model(window=4)
    peak_bytes(model, 1)
    (short, few), (long, many) = (peak_bytes(model, steps) for steps in (1, 4))
    plain, _ = peak_bytes(model, 4, recompute=False)
    # Keys and values, layers, kv heads, their size, bytes: of thoughts, and of the prompt that each wave is given. The
    # states between the segments, one per thought here, are as large as one of these.
    per_token = 2 * 2 * 2 * 4 * 8
    print(f"{(long - short) / (many - few) / per_token:.1f} tokens per thought, {plain / long:.1f} times with all kept")
    assert long - short < 4 * per_token * (many - few)
    assert plain > 4 * long


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "detached"}, "gradient='detached' is not defined for links that go on"),
        ({"gradient": 2}, "gradient=2 is not defined"),
        ({"full_cache": True}, "full_cache=False and reuse=False"),
        ({"reuse": True}, "full_cache=False and reuse=False"),
    ],
)
def test_replays_that_are_refused(options: dict[str, Any], message: str) -> None:
    model = tiny_model(window=4)
    chains = tc.given_chains(model, FOLDING, [[3, 1, 4]], [STEPS])
    with pytest.raises(ValueError, match=message):
        tc.replay_chains(model, chains, **options)
    with pytest.raises(ValueError, match="rollout 0 goes on from the cache of another link"):
        tc.replay(model, chains[0].links[1:])
    bare = [replace(link, continues=link.continues and replace(link.continues, state=None)) for link in chains[0].links]
    with pytest.raises(ValueError, match="a link carries no recorded state; replay it with anchored=False"):
        tc.replay(model, bare)
    assert_close(tc.replay(model, bare, anchored=False).logprobs.detach()[0, :7], chains[0].logprobs[:7])


def test_a_marker_of_several_tokens_is_kept_back_before_it_is_whole() -> None:
    """Full windows in front of each token of the marker: all heads keep the same of it, which the loops insist on."""
    model = tiny_model(window=3, eviction="random", evict_fraction=0.3)
    folding = tc.StepFolding(opening=[7, 8, 9], closing=[11], keep="written", max_steps=3, step_tokens=30)
    texts = [[*range(1, 1 + details), 7, 8, 9, 11, 5] for details in range(1, 6)]
    for seed in range(4):
        chains = tc.given_chains(model, folding, [[3]] * len(texts), texts, seed=seed)
        assert all(link.evictions for chain in chains for link in chain.links[:1])
        with torch.no_grad():
            assert_close(tc.naive_chain_logprobs(model, chains).logprobs, recorded(chains))
